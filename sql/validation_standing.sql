-- Where a planner and the benchmark stand on the validation block of one data version.
SELECT strategy, court, excess_sharpe, excess_low, excess_high, n_days
FROM main.leaderboard
WHERE checkpoint = $checkpoint AND data_version = $data_version AND block = 'validation'
    AND strategy IN ($strategy, $benchmark)
