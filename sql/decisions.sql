-- Every decision, one row an asset; weights are budgets, positions what is held of them, both shares of wealth.
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
