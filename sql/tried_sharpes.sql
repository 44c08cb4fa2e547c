-- The ratio over 1/N of every configuration that was tried on some of these sessions, whatever the block was called; NULL for
-- what failed. Baselines were chosen beforehand and do not count; a result that came out twice was the same configuration.
SELECT excess_sharpe
FROM main.backtest_trials
WHERE NOT list_contains($rivals, strategy) AND coalesce(start_date <= $end_date AND end_date >= $start_date, true)
QUALIFY excess_sharpe IS NULL OR row_number() OVER (PARTITION BY start_date, end_date, round(excess_sharpe, 12)) = 1
