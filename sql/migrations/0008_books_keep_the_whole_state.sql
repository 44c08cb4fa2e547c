-- A decision keeps the book that it belongs to and all that the next one needs: the exact portfolio, the universe and the plan.
-- Of older decisions the shares of wealth are known, which is enough to go on from.
CREATE TABLE IF NOT EXISTS main.decisions (
    date DATE NOT NULL, checkpoint VARCHAR NOT NULL, planner VARCHAR NOT NULL, data_version VARCHAR NOT NULL,
    asset VARCHAR NOT NULL, weight DOUBLE NOT NULL, signal INTEGER NOT NULL, position DOUBLE NOT NULL,
    hedge BOOLEAN NOT NULL, expected_return DOUBLE NOT NULL, expected_volatility DOUBLE NOT NULL,
    created_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'), held DOUBLE
);
CREATE TABLE IF NOT EXISTS main.decision_portfolios (
    date DATE NOT NULL, checkpoint VARCHAR NOT NULL, planner VARCHAR NOT NULL, data_version VARCHAR NOT NULL,
    feed VARCHAR NOT NULL, book VARCHAR NOT NULL CHECK (book IN ('champion', 'hindsight', 'trial')),
    previous_date DATE, wealth DOUBLE NOT NULL, peak DOUBLE NOT NULL, cash DOUBLE NOT NULL, hedge_held DOUBLE NOT NULL,
    created_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC')
);
ALTER TABLE main.decisions ADD COLUMN IF NOT EXISTS book VARCHAR;
ALTER TABLE main.decision_portfolios ADD COLUMN IF NOT EXISTS state VARCHAR;
ALTER TABLE main.decision_portfolios ADD COLUMN IF NOT EXISTS made_afterwards BOOLEAN;
UPDATE main.decisions AS decision
SET book = portfolio.book
FROM main.decision_portfolios AS portfolio
WHERE decision.date = portfolio.date AND decision.checkpoint = portfolio.checkpoint
    AND decision.planner = portfolio.planner AND decision.data_version = portfolio.data_version
    AND decision.book IS NULL;
