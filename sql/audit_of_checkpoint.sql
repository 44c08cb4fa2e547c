-- The newest verdict of each test of an audit of a checkpoint's planner.
SELECT test, passed, finding
FROM main.audit_results
WHERE checkpoint = $checkpoint AND strategy = $strategy
QUALIFY row_number() OVER (PARTITION BY test ORDER BY created_at DESC, rowid DESC) = 1
ORDER BY test
