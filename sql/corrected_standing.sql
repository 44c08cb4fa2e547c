-- A planner's deflated Sharpe ratio on the validation block, and what is said of the whole table.
SELECT board.dsr, court.pbo, court.trials, court.effective_trials, court.spa_p
FROM main.leaderboard AS board
JOIN main.court_inference AS court USING (checkpoint, data_version, block, court)
WHERE board.checkpoint = $checkpoint AND board.data_version = $data_version AND board.block = 'validation'
    AND board.strategy = $strategy
