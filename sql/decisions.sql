-- Every decision, one row an asset that is traded or held; weights are budgets; all are shares of wealth at the close.
CREATE TABLE IF NOT EXISTS main.decisions (
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
CREATE TABLE IF NOT EXISTS main.decision_portfolios (
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
