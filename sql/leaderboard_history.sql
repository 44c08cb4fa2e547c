-- Every strategy, fold and checkpoint that was ever judged in this home, the newest first.
SELECT leaderboard.*, court_inference.pbo, court_inference.trials
FROM main.leaderboard
LEFT JOIN main.court_inference USING (checkpoint, block, data_version, court)
ORDER BY leaderboard.created_at DESC, block, sharpe DESC NULLS LAST, strategy
