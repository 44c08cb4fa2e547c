-- What backtests leave behind. Returns, costs and turnover are shares of the wealth at the close before; wealth begins at 1 in
-- every block; all rates and drawdowns are fractions. `setup` is a hash of the conditions of a result (protocol, panel, universe,
-- block); only results of one setup may be compared. turnover: one-way.
CREATE TABLE IF NOT EXISTS backtest_returns (
    checkpoint VARCHAR, strategy VARCHAR,
    block VARCHAR NOT NULL CHECK (block IN ('validation', 'test', 'held_back', 'unseen_symbols')),
    date DATE, gross_return DOUBLE NOT NULL, net_return DOUBLE NOT NULL, cost DOUBLE, turnover DOUBLE, wealth DOUBLE,
    hedge BOOLEAN, data_version VARCHAR NOT NULL, setup VARCHAR NOT NULL
);

-- One row an asset and decision. date: the close of the decision, which is filled at the next one. weight: budget, as a share of
-- wealth. signal: 1 long, 0 flat, -1 short. held: signed share of wealth when the decision's step ended.
CREATE TABLE IF NOT EXISTS backtest_decisions (
    checkpoint VARCHAR, strategy VARCHAR, block VARCHAR, date DATE, entity VARCHAR, weight DOUBLE, signal DOUBLE, held DOUBLE,
    hedge DOUBLE, data_version VARCHAR NOT NULL, setup VARCHAR NOT NULL
);

-- What a planner expected of each decision step, by the model's own account, and what came of it. Log growth, not annualised.
CREATE TABLE IF NOT EXISTS backtest_expectations (
    checkpoint VARCHAR, strategy VARCHAR, block VARCHAR, date DATE, imagined_growth DOUBLE, imagined_volatility DOUBLE,
    realised_growth DOUBLE, data_version VARCHAR NOT NULL, setup VARCHAR NOT NULL
);

-- The same decisions under other costs, and with one part of the action after the other switched on. replay: cost_0 ... cost_50
-- (one-way basis points); weights, signals, hedge, net (attribution).
CREATE TABLE IF NOT EXISTS backtest_replays (
    checkpoint VARCHAR, strategy VARCHAR, block VARCHAR, replay VARCHAR, sharpe DOUBLE, annual_return DOUBLE,
    data_version VARCHAR NOT NULL, setup VARCHAR NOT NULL
);

-- Whether forecasts of a decision step's return order the assets: mean correlations (ic, rank_ic) with Newey-West 95 % intervals.
-- ratio: mean per standard deviation over decisions.
CREATE TABLE IF NOT EXISTS forecast_quality (
    checkpoint VARCHAR, forecaster VARCHAR, block VARCHAR, measure VARCHAR, mean DOUBLE, low DOUBLE, high DOUBLE, t DOUBLE,
    ratio DOUBLE, decisions BIGINT, data_version VARCHAR NOT NULL, setup VARCHAR NOT NULL
);

-- Every configuration that was ever tried, kept for good: a deflated Sharpe ratio counts them. excess_sharpe: of the net return
-- over 1/N, per session; NULL where it never differed or failed. Dates: the first and the last session.
CREATE TABLE IF NOT EXISTS backtest_trials (
    setup VARCHAR NOT NULL, checkpoint VARCHAR NOT NULL, strategy VARCHAR NOT NULL, block VARCHAR NOT NULL,
    data_version VARCHAR NOT NULL, excess_sharpe DOUBLE, n_days BIGINT, created_at TIMESTAMP, start_date DATE, end_date DATE
);

-- A strategy on a block, with 95 % intervals (low, high) of the stationary bootstrap, paired where two are compared.
--   kind: planner, baseline, control, user; fold: single, or the scheme and number of a walk-forward fold; run_id: of Dagster.
--   sharpe: annualised, of the return over cash, NULL where nothing moved; sharpe_lo: corrected for autocorrelation; psr: probability
--   that the true one is above 0; dsr: that the ratio of the return over 1/N is above what the best of all configurations would
--   show by luck.
--   max_drawdown: not positive; cvar_95: of a day, positive; annual_turnover: one-way; cost_drag: gross minus net annual return.
--   excess_*: over 1/N; probability_better: share of the samples with a Sharpe ratio above that of 1/N; best_*: over the baseline with
--   the highest Sharpe ratio; months_better: share of the months with a return above that of 1/N; detectable: true gain in Sharpe
--   ratio over 1/N that such a block shows in 80 % of cases; break_even_bps: one-way cost at which the mean return is that of 1/N,
--   NULL where it never is.
--   effective_n: 1 / sum of squared shares of the gross exposure, mean over decisions; hedged: share of the decisions.
CREATE TABLE IF NOT EXISTS leaderboard (
    checkpoint VARCHAR NOT NULL, strategy VARCHAR NOT NULL, block VARCHAR NOT NULL, kind VARCHAR, feed VARCHAR, fold VARCHAR,
    start_date DATE, end_date DATE, n_days BIGINT,
    sharpe DOUBLE, sharpe_low DOUBLE, sharpe_high DOUBLE, sharpe_lo DOUBLE, psr DOUBLE, dsr DOUBLE,
    annual_return DOUBLE, annual_volatility DOUBLE, max_drawdown DOUBLE, sortino DOUBLE, calmar DOUBLE, cvar_95 DOUBLE,
    hit_rate DOUBLE, annual_turnover DOUBLE, cost_drag DOUBLE,
    excess_sharpe DOUBLE, excess_low DOUBLE, excess_high DOUBLE, probability_better DOUBLE,
    best_baseline VARCHAR, best_excess DOUBLE, best_excess_low DOUBLE, best_excess_high DOUBLE, months_better DOUBLE,
    effective_n DOUBLE, gross_exposure DOUBLE, net_exposure DOUBLE, hedged DOUBLE, break_even_bps DOUBLE, detectable DOUBLE,
    data_version VARCHAR NOT NULL, setup VARCHAR NOT NULL, run_id VARCHAR, created_at TIMESTAMP NOT NULL
);

-- Statistics of a whole leaderboard: one row a setup. trials: configurations ever tried on some of these sessions, failed ones
-- included; effective_trials: clusters of returns that correlate by less than 0.5; pbo: probability of backtest overfitting, CSCV;
-- spa_p: Hansen's test that nobody beats 1/N in mean return; sharpe_error: standard error of an annualised Sharpe ratio.
CREATE TABLE IF NOT EXISTS backtest_inference (
    checkpoint VARCHAR, block VARCHAR, strategies BIGINT, trials BIGINT, effective_trials BIGINT, pbo DOUBLE, pbo_logits DOUBLE[],
    spa_p DOUBLE, years DOUBLE, sharpe_error DOUBLE, data_version VARCHAR NOT NULL, setup VARCHAR NOT NULL, created_at TIMESTAMP
);

-- Results of `finjepa audit`. Nothing is replaced: a failure stands beside a later pass. passed: NULL where there were not enough
-- data, or it could not be run.
CREATE TABLE IF NOT EXISTS audit_results (
    checkpoint VARCHAR NOT NULL, strategy VARCHAR NOT NULL, data_version VARCHAR NOT NULL, test VARCHAR NOT NULL, passed BOOLEAN,
    value DOUBLE, finding VARCHAR NOT NULL, run_id VARCHAR NOT NULL, created_at TIMESTAMP NOT NULL
);

-- Each time that a backtest opened the held-back block.
CREATE TABLE IF NOT EXISTS held_back_openings (
    checkpoint VARCHAR, data_version VARCHAR NOT NULL, start_date DATE, end_date DATE, run_id VARCHAR, opened_at TIMESTAMP
);

-- The folds of each walk-forward plan: one model a fold, NULL until it is trained. Dates are the first and the last session of a block.
CREATE TABLE IF NOT EXISTS walk_forward_folds (
    plan VARCHAR NOT NULL, fold VARCHAR NOT NULL, checkpoint VARCHAR, train_start DATE, train_end DATE, validation_start DATE,
    validation_end DATE, test_start DATE, test_end DATE, data_version VARCHAR, config_json VARCHAR
);
