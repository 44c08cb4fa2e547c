-- The champion of now, or of the moment $until (UTC).
SELECT checkpoint, strategy
FROM main.champions
WHERE verdict = 'promoted' AND ($until::TIMESTAMP IS NULL OR created_at <= $until::TIMESTAMP)
ORDER BY created_at DESC, rowid DESC
LIMIT 1
