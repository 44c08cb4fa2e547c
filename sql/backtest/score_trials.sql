-- The Sharpe ratio, per session, of what each configuration of a setup earned over 1/N.
UPDATE main.backtest_trials AS trial SET excess_sharpe = scored.ratio
FROM (
    SELECT mine.strategy, stddev_samp(mine.net_return - benchmark.net_return) AS deviation,
        CASE WHEN deviation > 1e-12 THEN avg(mine.net_return - benchmark.net_return) / deviation END AS ratio
    FROM main.backtest_returns AS mine JOIN main.backtest_returns AS benchmark USING (setup, date)
    WHERE mine.setup = $setup AND benchmark.strategy = $benchmark GROUP BY mine.strategy
) AS scored
WHERE trial.setup = $setup AND trial.strategy = scored.strategy
