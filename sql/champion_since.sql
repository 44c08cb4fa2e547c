-- The champion of now, and when it was promoted (UTC).
SELECT checkpoint, created_at
FROM main.champions
WHERE verdict = 'promoted'
ORDER BY created_at DESC, rowid DESC
LIMIT 1
