-- What the backtests leave behind. Returns, costs and turnover are shares of the wealth at the close before; wealth begins
-- at 1 in every block; all rates and drawdowns are fractions. `court` is a hash of the conditions
-- of a walk: protocol, panel, universe, block; only walks of one court may be compared.
CREATE TABLE IF NOT EXISTS backtest_returns (
    checkpoint VARCHAR NOT NULL,
    strategy VARCHAR NOT NULL,
    block VARCHAR NOT NULL CHECK (block IN ('validation', 'test')),
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
    court VARCHAR NOT NULL
);
-- Every walk that was ever judged, kept for good: the number of trials that a deflated Sharpe ratio has to answer for.
CREATE TABLE IF NOT EXISTS backtest_trials (
    court VARCHAR NOT NULL,
    checkpoint VARCHAR NOT NULL,
    strategy VARCHAR NOT NULL,
    block VARCHAR NOT NULL,
    data_version VARCHAR NOT NULL,
    daily_sharpe DOUBLE,  -- per day, not annualised; NULL where nothing moved
    n_days BIGINT NOT NULL,
    created_at TIMESTAMP NOT NULL
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
    court VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL
);
