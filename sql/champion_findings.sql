-- What the gate found when it last judged a checkpoint.
SELECT name, passed, blocking, detail
FROM main.champion_checks
WHERE checkpoint = $checkpoint
    AND created_at = (SELECT max(created_at) FROM main.champion_checks WHERE checkpoint = $checkpoint)
ORDER BY rowid
