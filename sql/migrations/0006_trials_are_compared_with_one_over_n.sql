-- What is deflated is the return over 1/N, so a trial keeps the Sharpe ratio of that; it is known where both walks are still
-- stored. Leaderboards of before deflated the return over cash: they claim nothing until they are measured again.
ALTER TABLE main.backtest_trials RENAME COLUMN daily_sharpe TO excess_sharpe;
UPDATE main.backtest_trials SET excess_sharpe = NULL;
UPDATE main.backtest_trials AS trial
SET excess_sharpe = scored.ratio
FROM (
    SELECT
        mine.court,
        mine.strategy,
        CASE WHEN stddev_samp(mine.net_return - benchmark.net_return) > 1e-12
            THEN avg(mine.net_return - benchmark.net_return) / stddev_samp(mine.net_return - benchmark.net_return)
        END AS ratio
    FROM main.backtest_returns AS mine
    JOIN main.backtest_returns AS benchmark USING (court, date)
    WHERE benchmark.strategy = 'equal_weight'
    GROUP BY mine.court, mine.strategy
) AS scored
WHERE trial.court = scored.court AND trial.strategy = scored.strategy;
ALTER TABLE IF EXISTS main.leaderboard ALTER COLUMN dsr TYPE DOUBLE USING NULL::DOUBLE;
ALTER TABLE IF EXISTS main.court_inference ALTER COLUMN trials TYPE BIGINT USING 0::BIGINT;
