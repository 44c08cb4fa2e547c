-- The leaderboard learns what corrections for the number of trials say; backtests also walk held-back blocks and unseen symbols.
ALTER TABLE IF EXISTS main.leaderboard ADD COLUMN IF NOT EXISTS kind VARCHAR;
ALTER TABLE IF EXISTS main.leaderboard ADD COLUMN IF NOT EXISTS feed VARCHAR;
ALTER TABLE IF EXISTS main.leaderboard ADD COLUMN IF NOT EXISTS fold VARCHAR;
ALTER TABLE IF EXISTS main.leaderboard ADD COLUMN IF NOT EXISTS run_id VARCHAR;
ALTER TABLE IF EXISTS main.leaderboard ADD COLUMN IF NOT EXISTS sharpe_lo DOUBLE;
ALTER TABLE IF EXISTS main.leaderboard ADD COLUMN IF NOT EXISTS psr DOUBLE;
ALTER TABLE IF EXISTS main.leaderboard ADD COLUMN IF NOT EXISTS dsr DOUBLE;
ALTER TABLE IF EXISTS main.leaderboard ADD COLUMN IF NOT EXISTS best_baseline VARCHAR;
ALTER TABLE IF EXISTS main.leaderboard ADD COLUMN IF NOT EXISTS best_excess DOUBLE;
ALTER TABLE IF EXISTS main.leaderboard ADD COLUMN IF NOT EXISTS best_excess_low DOUBLE;
ALTER TABLE IF EXISTS main.leaderboard ADD COLUMN IF NOT EXISTS best_excess_high DOUBLE;
ALTER TABLE IF EXISTS main.leaderboard ADD COLUMN IF NOT EXISTS months_better DOUBLE;
ALTER TABLE IF EXISTS main.leaderboard ADD COLUMN IF NOT EXISTS effective_n DOUBLE;
ALTER TABLE IF EXISTS main.leaderboard ADD COLUMN IF NOT EXISTS gross_exposure DOUBLE;
ALTER TABLE IF EXISTS main.leaderboard ADD COLUMN IF NOT EXISTS net_exposure DOUBLE;
ALTER TABLE IF EXISTS main.leaderboard ADD COLUMN IF NOT EXISTS hedged DOUBLE;
ALTER TABLE IF EXISTS main.leaderboard ADD COLUMN IF NOT EXISTS break_even_bps DOUBLE;
ALTER TABLE IF EXISTS main.leaderboard ADD COLUMN IF NOT EXISTS detectable DOUBLE;

-- A check of a table cannot be changed: the table is made again.
CREATE TABLE IF NOT EXISTS main.backtest_returns (
    checkpoint VARCHAR, strategy VARCHAR, block VARCHAR, date DATE, gross_return DOUBLE, net_return DOUBLE, cost DOUBLE,
    turnover DOUBLE, wealth DOUBLE, hedge BOOLEAN, data_version VARCHAR, court VARCHAR
);
CREATE TABLE main.backtest_returns_3 (
    checkpoint VARCHAR NOT NULL,
    strategy VARCHAR NOT NULL,
    block VARCHAR NOT NULL CHECK (block IN ('validation', 'test', 'held_back', 'unseen_symbols')),
    date DATE NOT NULL,
    gross_return DOUBLE NOT NULL,
    net_return DOUBLE NOT NULL,
    cost DOUBLE NOT NULL,
    turnover DOUBLE NOT NULL,  -- one-way
    wealth DOUBLE NOT NULL,
    hedge BOOLEAN NOT NULL,
    data_version VARCHAR NOT NULL,
    court VARCHAR NOT NULL
);
INSERT INTO main.backtest_returns_3 BY NAME FROM main.backtest_returns;
DROP TABLE main.backtest_returns;
ALTER TABLE main.backtest_returns_3 RENAME TO backtest_returns;
