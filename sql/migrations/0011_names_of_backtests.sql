-- `setup` is the hash of the conditions under which a strategy was tested, and the tests of an audit have the field's names.
ALTER TABLE IF EXISTS main.backtest_returns RENAME COLUMN court TO setup;
ALTER TABLE IF EXISTS main.backtest_decisions RENAME COLUMN court TO setup;
ALTER TABLE IF EXISTS main.backtest_expectations RENAME COLUMN court TO setup;
ALTER TABLE IF EXISTS main.backtest_replays RENAME COLUMN court TO setup;
ALTER TABLE IF EXISTS main.forecast_quality RENAME COLUMN court TO setup;
ALTER TABLE IF EXISTS main.backtest_trials RENAME COLUMN court TO setup;
ALTER TABLE IF EXISTS main.leaderboard RENAME COLUMN court TO setup;
ALTER TABLE IF EXISTS main.court_inference RENAME COLUMN court TO setup;
ALTER TABLE IF EXISTS main.court_inference RENAME TO backtest_inference;
CREATE TABLE IF NOT EXISTS main.audit_markets (
    checkpoint VARCHAR NOT NULL, strategy VARCHAR NOT NULL, test VARCHAR NOT NULL, seed BIGINT NOT NULL, protocol BIGINT NOT NULL,
    found_json VARCHAR NOT NULL
);
UPDATE main.audit_results SET test = 'future_invariance' WHERE test = 'truncation';
UPDATE main.audit_results SET test = 'known_truth' WHERE test = 'planted_market';
UPDATE main.audit_markets SET test = 'known_truth' WHERE test = 'planted_market';
