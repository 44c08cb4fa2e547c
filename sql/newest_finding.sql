-- What was found last by a test of an audit on some prices.
SELECT passed, finding
FROM main.audit_results
WHERE checkpoint = $checkpoint AND strategy = $strategy AND data_version = $data_version AND test = $test
ORDER BY created_at DESC, rowid DESC
LIMIT 1
