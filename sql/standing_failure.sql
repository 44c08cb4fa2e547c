-- The newest failure of a test: on these prices, or on any where the test has markets of its own.
SELECT finding
FROM main.audit_results
WHERE checkpoint = $checkpoint AND strategy = $strategy AND test = $test AND passed IS false
    AND (data_version = $data_version OR list_contains($markets, test))
ORDER BY created_at DESC, rowid DESC
LIMIT 1
