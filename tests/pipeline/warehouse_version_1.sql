-- The tables of FinJEPA as its first version made them, with a row in each that carries results. Never edited.
CREATE SEQUENCE IF NOT EXISTS feed_ids START 1;

CREATE TABLE IF NOT EXISTS feeds (
    feed_id USMALLINT, feed VARCHAR, source VARCHAR, options_json VARCHAR
);

CREATE TABLE IF NOT EXISTS revisions (
    revision INTEGER, feed_id USMALLINT, version VARCHAR, data_version VARCHAR, created_at TIMESTAMP,
    total_rows BIGINT, new_rows BIGINT, ended_rows BIGINT, quarantined_rows BIGINT,
    first_date DATE, last_date DATE, columns VARCHAR[],
    files STRUCT("name" VARCHAR, sha256 VARCHAR)[], outcomes_json VARCHAR
);

CREATE TABLE IF NOT EXISTS raw_price_versions (
    feed_id USMALLINT, first_revision INTEGER, symbol VARCHAR, date DATE,
    open DOUBLE, high DOUBLE, low DOUBLE, close DOUBLE, volume BIGINT, adj_close DOUBLE,
    broken UINTEGER, unreadable VARCHAR
);

CREATE TABLE IF NOT EXISTS raw_price_ends (
    feed_id USMALLINT, first_revision INTEGER, symbol VARCHAR, date DATE, last_revision INTEGER
);

CREATE TABLE IF NOT EXISTS price_digests (
    feed_id USMALLINT, symbol VARCHAR, year SMALLINT, n BIGINT, folded UBIGINT, total HUGEINT
);

CREATE TABLE IF NOT EXISTS session_counts (feed_id USMALLINT, date DATE, n BIGINT);

CREATE TABLE IF NOT EXISTS dropped_sessions (
    feed_id USMALLINT, revision INTEGER, date DATE, rule VARCHAR
);

CREATE TABLE IF NOT EXISTS active_view (
    feed_id USMALLINT, revision INTEGER
);

CREATE TABLE IF NOT EXISTS derived_state (feed_id USMALLINT, revision INTEGER, options_json VARCHAR);

CREATE TABLE IF NOT EXISTS price_sessions (date DATE, session INTEGER, rows INTEGER);

CREATE TABLE IF NOT EXISTS price_events (
    symbol VARCHAR, date DATE, date_before DATE, gap INTEGER, close_ratio DOUBLE, factor_ratio DOUBLE,
    return_ratio DOUBLE, volume_ratio DOUBLE
);

CREATE TABLE IF NOT EXISTS stale_prices (symbol VARCHAR, date DATE);

CREATE TABLE IF NOT EXISTS corporate_actions (symbol VARCHAR, date DATE, action VARCHAR, value DOUBLE);

CREATE TABLE IF NOT EXISTS entities (
    entity VARCHAR, symbol VARCHAR, first_date DATE, last_date DATE, adjusted BOOLEAN,
    ended_because VARCHAR, delisting_return DOUBLE
);

CREATE TABLE IF NOT EXISTS universe (date DATE, entity VARCHAR);
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
CREATE TABLE IF NOT EXISTS main.champions (
    checkpoint VARCHAR NOT NULL,  -- the challenger that was judged
    data_version VARCHAR NOT NULL,
    verdict VARCHAR NOT NULL CHECK (verdict IN ('promoted', 'kept', 'refused')),
    reasons VARCHAR NOT NULL,  -- one a line
    strategy VARCHAR,  -- the challenger's planner with the best validation Sharpe ratio
    incumbent VARCHAR,  -- the champion it was measured against; NULL when there was none
    probability_better DOUBLE,  -- share of bootstrap samples in which its Sharpe ratio is the higher one
    common_days INTEGER,  -- sessions that the comparison is made on
    created_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC')
);
CREATE TABLE IF NOT EXISTS main.decisions (
    date DATE NOT NULL,  -- the close of the decision
    checkpoint VARCHAR NOT NULL,
    planner VARCHAR NOT NULL,
    data_version VARCHAR NOT NULL,
    asset VARCHAR NOT NULL,
    weight DOUBLE NOT NULL,
    signal INTEGER NOT NULL,  -- 1 long, 0 flat, -1 short
    position DOUBLE NOT NULL,
    hedge BOOLEAN NOT NULL,
    expected_return DOUBLE NOT NULL,  -- annualised, by the model's own account
    expected_volatility DOUBLE NOT NULL,
    created_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC')
);
CREATE TABLE IF NOT EXISTS main.releases (
    checkpoint VARCHAR NOT NULL,
    content_hash VARCHAR NOT NULL,  -- of the files that make the model act
    target VARCHAR NOT NULL,  -- 'local' (FINJEPA_HOME/releases/<tag>) or the address of a Hub repository
    commit VARCHAR,  -- on the Hub; NULL for 'local'
    tag VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
    PRIMARY KEY (content_hash, target)
);
INSERT INTO champions VALUES ('aaaa', 'data1', 'promoted', 'there was no champion', 'mppi', NULL, NULL, NULL, TIMESTAMP '2026-01-02 23:00:00');
INSERT INTO decisions VALUES (DATE '2022-12-28', 'aaaa', 'mppi', 'data1', 'A', 1.0, 1, 1.0, false, 0.1, 0.2, TIMESTAMP '2026-01-02 23:01:00');
INSERT INTO releases VALUES ('aaaa', 'c0ffee', 'local', NULL, '2022-12-28-c0ffee', TIMESTAMP '2026-01-02 23:02:00');
INSERT INTO backtest_returns VALUES ('aaaa', 'mppi', 'test', DATE '2022-12-28', 0.01, 0.009, 0.001, 0.5, 1.009, false, 'data1', 'court1');
INSERT INTO backtest_trials VALUES ('court1', 'aaaa', 'mppi', 'test', 'data1', 0.05, 250, TIMESTAMP '2026-01-02 22:00:00');
INSERT INTO leaderboard BY NAME SELECT 'aaaa' AS checkpoint, 'mppi' AS strategy, 'test' AS block, DATE '2022-01-03' AS start_date,
    DATE '2022-12-28' AS end_date, 0.1 AS annual_return, 0.2 AS annual_volatility, -0.1 AS max_drawdown, 0.02 AS cvar_95,
    0.5 AS hit_rate, 1.0 AS annual_turnover, 0.0 AS cost_drag, 250 AS n_days, 'data1' AS data_version, 'court1' AS court,
    TIMESTAMP '2026-01-02 22:00:00' AS created_at;
