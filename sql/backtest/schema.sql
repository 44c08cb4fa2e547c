-- What backtests leave behind. Returns, costs and turnover are shares of the wealth at the close before; wealth begins at 1 in
-- every block; all rates and drawdowns are fractions. `setup` is a hash of the conditions of a result (protocol, panel, universe,
-- block); only results of one setup may be compared.
CREATE TABLE IF NOT EXISTS backtest_returns (
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
    setup VARCHAR NOT NULL
);
-- One row an asset and decision; `date` is the close of the decision, which is filled at the next one.
CREATE TABLE IF NOT EXISTS backtest_decisions (
    checkpoint VARCHAR NOT NULL,
    strategy VARCHAR NOT NULL,
    block VARCHAR NOT NULL,
    date DATE NOT NULL,
    entity VARCHAR NOT NULL,
    weight DOUBLE NOT NULL,  -- budget, as a share of wealth
    signal DOUBLE NOT NULL,  -- 1 long, 0 flat, -1 short
    held DOUBLE NOT NULL,  -- signed share of wealth when the decision's step ended
    hedge DOUBLE NOT NULL,
    data_version VARCHAR NOT NULL,
    setup VARCHAR NOT NULL
);
-- What a planner expected of each decision step, by the model's own account, and what came of it. Log growth, not annualised.
CREATE TABLE IF NOT EXISTS backtest_expectations (
    checkpoint VARCHAR NOT NULL,
    strategy VARCHAR NOT NULL,
    block VARCHAR NOT NULL,
    date DATE NOT NULL,
    imagined_growth DOUBLE NOT NULL,
    imagined_volatility DOUBLE NOT NULL,
    realised_growth DOUBLE NOT NULL,
    data_version VARCHAR NOT NULL,
    setup VARCHAR NOT NULL
);
-- The same decisions under other costs, and with one part of the action after the other switched on.
CREATE TABLE IF NOT EXISTS backtest_replays (
    checkpoint VARCHAR NOT NULL,
    strategy VARCHAR NOT NULL,
    block VARCHAR NOT NULL,
    replay VARCHAR NOT NULL,  -- cost_0 ... cost_50: one-way basis points; weights, signals, hedge, net: attribution
    sharpe DOUBLE,
    annual_return DOUBLE NOT NULL,
    data_version VARCHAR NOT NULL,
    setup VARCHAR NOT NULL
);
-- Whether forecasts of a decision step's return order the assets: mean correlations with Newey-West 95 % intervals.
CREATE TABLE IF NOT EXISTS forecast_quality (
    checkpoint VARCHAR NOT NULL,
    forecaster VARCHAR NOT NULL,
    block VARCHAR NOT NULL,
    measure VARCHAR NOT NULL CHECK (measure IN ('ic', 'rank_ic')),
    mean DOUBLE,
    low DOUBLE,
    high DOUBLE,
    t DOUBLE,
    ratio DOUBLE,  -- mean per standard deviation over decisions
    decisions BIGINT NOT NULL,
    data_version VARCHAR NOT NULL,
    setup VARCHAR NOT NULL
);
-- Every configuration that was ever tried, kept for good: a deflated Sharpe ratio counts them.
CREATE TABLE IF NOT EXISTS backtest_trials (
    setup VARCHAR NOT NULL,
    checkpoint VARCHAR NOT NULL,
    strategy VARCHAR NOT NULL,
    block VARCHAR NOT NULL,
    data_version VARCHAR NOT NULL,
    excess_sharpe DOUBLE,  -- of the net return over 1/N, per session; NULL where it never differed, failed or is not known
    n_days BIGINT NOT NULL,
    created_at TIMESTAMP NOT NULL,
    start_date DATE,  -- first and last session; NULL where an older version did not store them
    end_date DATE
);
CREATE TABLE IF NOT EXISTS leaderboard (
    checkpoint VARCHAR NOT NULL,
    strategy VARCHAR NOT NULL,
    block VARCHAR NOT NULL,
    start_date DATE NOT NULL,
    end_date DATE NOT NULL,
    sharpe DOUBLE,  -- annualised, of the return over cash; NULL where nothing moved
    sharpe_low DOUBLE,  -- 95 % interval, stationary bootstrap
    sharpe_high DOUBLE,
    annual_return DOUBLE NOT NULL,
    annual_volatility DOUBLE NOT NULL,
    max_drawdown DOUBLE NOT NULL,  -- not positive
    sortino DOUBLE,
    calmar DOUBLE,
    cvar_95 DOUBLE NOT NULL,  -- of a day, positive
    hit_rate DOUBLE NOT NULL,
    annual_turnover DOUBLE NOT NULL,  -- one-way
    cost_drag DOUBLE NOT NULL,  -- gross minus net annual return
    excess_sharpe DOUBLE,  -- over 1/N
    excess_low DOUBLE,  -- 95 % interval, paired stationary bootstrap
    excess_high DOUBLE,
    probability_better DOUBLE,  -- share of the bootstrap samples with a Sharpe ratio above that of 1/N
    n_days BIGINT NOT NULL,
    data_version VARCHAR NOT NULL,
    setup VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL,
    kind VARCHAR,  -- planner, baseline, control, user
    feed VARCHAR,  -- the prices
    fold VARCHAR,  -- single, or the scheme and number of a walk-forward fold
    run_id VARCHAR,  -- of Dagster
    sharpe_lo DOUBLE,  -- corrected for autocorrelation
    psr DOUBLE,  -- probability that the true Sharpe ratio is above 0
    dsr DOUBLE,  -- probability that the ratio of the return over 1/N is above what the best of all configurations would show by luck
    best_baseline VARCHAR,  -- the one with the highest Sharpe ratio
    best_excess DOUBLE,  -- Sharpe ratio minus that of the best baseline
    best_excess_low DOUBLE,  -- 95 % interval, paired stationary bootstrap
    best_excess_high DOUBLE,
    months_better DOUBLE,  -- share of the months with a return above that of 1/N
    effective_n DOUBLE,  -- 1 / sum of squared shares of the gross exposure, mean over decisions
    gross_exposure DOUBLE,
    net_exposure DOUBLE,
    hedged DOUBLE,  -- share of the decisions
    break_even_bps DOUBLE,  -- one-way cost at which the mean return is that of 1/N; NULL where it never is
    detectable DOUBLE  -- true gain in Sharpe ratio over 1/N that such a block shows in 80 % of cases
);
-- Statistics of a whole leaderboard: one row a setup.
CREATE TABLE IF NOT EXISTS backtest_inference (
    checkpoint VARCHAR NOT NULL,
    block VARCHAR NOT NULL,
    strategies BIGINT NOT NULL,
    trials BIGINT NOT NULL,  -- configurations ever tried on some of these sessions, failed ones included
    effective_trials BIGINT NOT NULL,  -- clusters of returns that correlate by less than 0.5
    pbo DOUBLE,  -- probability of backtest overfitting, CSCV
    pbo_logits DOUBLE [],
    spa_p DOUBLE,  -- Hansen's test that nobody beats 1/N in mean return
    years DOUBLE NOT NULL,
    sharpe_error DOUBLE NOT NULL,  -- standard error of an annualised Sharpe ratio
    data_version VARCHAR NOT NULL,
    setup VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL
);
-- Results of `finjepa audit`. Nothing is replaced: a failure stands beside a later pass.
CREATE TABLE IF NOT EXISTS audit_results (
    checkpoint VARCHAR NOT NULL,
    strategy VARCHAR NOT NULL,
    data_version VARCHAR NOT NULL,
    test VARCHAR NOT NULL,
    passed BOOLEAN,  -- NULL: not enough data, or it could not be run
    value DOUBLE,
    finding VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL
);
-- Each time that a backtest opened the held-back block.
CREATE TABLE IF NOT EXISTS held_back_openings (
    checkpoint VARCHAR NOT NULL,
    data_version VARCHAR NOT NULL,
    start_date DATE NOT NULL,
    end_date DATE NOT NULL,
    run_id VARCHAR NOT NULL,
    opened_at TIMESTAMP NOT NULL
);
-- The folds of each walk-forward plan: one model a fold. Dates are the first and the last session of a block.
CREATE TABLE IF NOT EXISTS walk_forward_folds (
    plan VARCHAR NOT NULL,
    fold VARCHAR NOT NULL,
    checkpoint VARCHAR,  -- NULL until its model is trained
    train_start DATE NOT NULL,
    train_end DATE NOT NULL,
    validation_start DATE NOT NULL,
    validation_end DATE NOT NULL,
    test_start DATE NOT NULL,
    test_end DATE NOT NULL,
    data_version VARCHAR NOT NULL,
    config_json VARCHAR NOT NULL
);
