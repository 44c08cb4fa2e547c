-- What a checkpoint's leaderboard was measured of: its walks, and how many trials they had to answer for.
SELECT block, court, trials, strategy
FROM main.leaderboard
JOIN main.court_inference USING (checkpoint, data_version, block, court)
WHERE checkpoint = $checkpoint AND data_version = $data_version
