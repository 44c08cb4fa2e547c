-- Every verdict of the champion gate; the champion is the checkpoint of the newest row that says 'promoted'.
CREATE TABLE IF NOT EXISTS champions (
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
-- What the champion gate looked at, one row a finding, for each verdict of `champions`.
CREATE TABLE IF NOT EXISTS champion_checks (
    checkpoint VARCHAR NOT NULL,  -- the challenger that was judged
    data_version VARCHAR NOT NULL,
    incumbent VARCHAR,  -- the champion it was measured against; NULL when there was none
    name VARCHAR NOT NULL,
    passed BOOLEAN,  -- NULL where it could not be said
    blocking BOOLEAN NOT NULL,  -- whether it forbids a promotion when it does not hold
    detail VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL  -- that of the verdict
);
-- Every decision, one row an asset that is traded or held; weights are budgets; all are shares of wealth at the close.
CREATE TABLE IF NOT EXISTS decisions (
    date DATE NOT NULL,  -- the close of the decision
    checkpoint VARCHAR NOT NULL,
    planner VARCHAR NOT NULL,
    data_version VARCHAR NOT NULL,
    asset VARCHAR NOT NULL,
    weight DOUBLE NOT NULL,
    signal INTEGER NOT NULL,  -- 1 long, 0 flat, -1 short
    position DOUBLE NOT NULL,  -- what is to be held after the next close
    hedge BOOLEAN NOT NULL,
    expected_return DOUBLE NOT NULL,  -- annualised, by the model's own account
    expected_volatility DOUBLE NOT NULL,
    created_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
    held DOUBLE,  -- what was held at the close; NULL in decisions of version 1, which began in cash
    book VARCHAR  -- as in decision_portfolios; NULL in decisions of version 1
);
-- The portfolio from which each decision starts: what the decision before it left. Wealth begins at 1.
CREATE TABLE IF NOT EXISTS decision_portfolios (
    date DATE NOT NULL,
    checkpoint VARCHAR NOT NULL,
    planner VARCHAR NOT NULL,
    data_version VARCHAR NOT NULL,
    feed VARCHAR NOT NULL,  -- of the prices; books of different feeds never mix
    book VARCHAR NOT NULL CHECK (book IN ('champion', 'hindsight', 'trial')),
    previous_date DATE,  -- of the decision before; NULL when this one began in cash
    wealth DOUBLE NOT NULL,
    peak DOUBLE NOT NULL,  -- highest wealth so far
    cash DOUBLE NOT NULL,  -- share of wealth
    hedge_held DOUBLE NOT NULL,  -- value of the market proxy held, share of wealth
    created_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
    state VARCHAR,  -- JSON of what the next decision needs; NULL in decisions of before version 8
    made_afterwards BOOLEAN  -- a later close was known when the decision was made
);
-- What was released where; a content goes to a target once.
CREATE TABLE IF NOT EXISTS releases (
    checkpoint VARCHAR NOT NULL,
    content_hash VARCHAR NOT NULL,  -- of the files that make the model act
    target VARCHAR NOT NULL,  -- 'local' (FINJEPA_HOME/releases/<tag>) or the address of a Hub repository
    commit VARCHAR,  -- on the Hub; NULL for 'local'
    tag VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
    PRIMARY KEY (content_hash, target)
);
