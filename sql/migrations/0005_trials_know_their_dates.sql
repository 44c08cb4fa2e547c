-- A trial knows its first and last session, so that trials are counted by the dates that they share. Where the returns are
-- still stored they tell; of the others nothing is known.
CREATE TABLE IF NOT EXISTS main.backtest_trials (
    court VARCHAR, checkpoint VARCHAR, strategy VARCHAR, block VARCHAR, data_version VARCHAR, daily_sharpe DOUBLE,
    n_days BIGINT, created_at TIMESTAMP
);
ALTER TABLE main.backtest_trials ADD COLUMN IF NOT EXISTS start_date DATE;
ALTER TABLE main.backtest_trials ADD COLUMN IF NOT EXISTS end_date DATE;
UPDATE main.backtest_trials AS trial
SET start_date = walk.start_date, end_date = walk.end_date
FROM (
    SELECT court, strategy, min(date) AS start_date, max(date) AS end_date
    FROM main.backtest_returns
    GROUP BY court, strategy
) AS walk
WHERE trial.court = walk.court AND trial.strategy = walk.strategy AND trial.start_date IS NULL;
