-- A checkpoint's newest leaderboard: the test block first, the highest Sharpe ratio on top.
SELECT * EXCLUDE (court)
FROM main.leaderboard
WHERE checkpoint = $checkpoint AND data_version = (
    SELECT data_version FROM main.leaderboard WHERE checkpoint = $checkpoint ORDER BY created_at DESC LIMIT 1
)
ORDER BY block, sharpe DESC NULLS LAST, strategy
