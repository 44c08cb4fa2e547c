-- What is said of the whole test block of a checkpoint's newest leaderboard.
SELECT trials, effective_trials, pbo, spa_p
FROM main.court_inference
WHERE checkpoint = $checkpoint AND block = 'test'
ORDER BY created_at DESC
LIMIT 1
