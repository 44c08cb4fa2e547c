SELECT reasons
FROM main.champions
WHERE checkpoint = $checkpoint AND verdict = 'promoted'
ORDER BY created_at DESC, rowid DESC
LIMIT 1
