-- Every verdict of the champion gate; the champion is the checkpoint of the newest row that says 'promoted'. checkpoint: the
-- challenger that was judged; strategy: the planner that acts for it; reasons: one a line. incumbent: the champion it was measured
-- against, NULL when there was none; t_baseline, t_champion: t-value of the losses of its forecasts minus those of the analytic baseline
-- and of the champion, negative where its own are better, NULL where there was nothing to compare.
CREATE TABLE IF NOT EXISTS champions (
    checkpoint VARCHAR NOT NULL, data_version VARCHAR NOT NULL,
    verdict VARCHAR NOT NULL CHECK (verdict IN ('promoted', 'kept', 'refused')), reasons VARCHAR NOT NULL,
    strategy VARCHAR, incumbent VARCHAR, t_baseline DOUBLE, t_champion DOUBLE,
    created_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC')
);

-- What the gate looked at, one row a finding, for each verdict. passed: NULL where it could not be said; blocking: it forbids a
-- promotion when it does not hold; created_at: that of the verdict.
CREATE TABLE IF NOT EXISTS champion_checks (
    checkpoint VARCHAR NOT NULL, data_version VARCHAR NOT NULL, incumbent VARCHAR, name VARCHAR NOT NULL, passed BOOLEAN,
    blocking BOOLEAN NOT NULL, detail VARCHAR NOT NULL, created_at TIMESTAMP NOT NULL
);

-- Every decision, one row an asset that is traded or held; weights are budgets; all are shares of wealth at the close, which is
-- that of date. signal: 1 long, 0 flat, -1 short; position: what is to be held after the next close; held: what was held at
-- the close. What is expected is annualised, by the model's own account.
CREATE TABLE IF NOT EXISTS decisions (
    date DATE NOT NULL, checkpoint VARCHAR NOT NULL, planner VARCHAR NOT NULL, data_version VARCHAR NOT NULL, book VARCHAR,
    asset VARCHAR NOT NULL, weight DOUBLE NOT NULL, signal INTEGER NOT NULL, position DOUBLE NOT NULL, held DOUBLE,
    hedge BOOLEAN NOT NULL, expected_return DOUBLE, expected_volatility DOUBLE,
    created_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC')
);

-- The portfolio from which each decision starts: what the decision before it left. feed: of the prices; books of different feeds
-- never mix. previous_date: of the decision before, NULL when this one began in cash. Wealth begins at 1, peak is the highest so
-- far; cash and hedge_held (of the market proxy) are shares of wealth. state: JSON of what the next decision needs.
-- made_afterwards: a later close was known when the decision was made.
CREATE TABLE IF NOT EXISTS decision_portfolios (
    date DATE NOT NULL, checkpoint VARCHAR NOT NULL, planner VARCHAR NOT NULL, data_version VARCHAR NOT NULL,
    feed VARCHAR NOT NULL, book VARCHAR NOT NULL CHECK (book IN ('champion', 'hindsight', 'trial')),
    previous_date DATE, wealth DOUBLE NOT NULL, peak DOUBLE NOT NULL, cash DOUBLE NOT NULL, hedge_held DOUBLE NOT NULL,
    state VARCHAR, made_afterwards BOOLEAN, created_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC')
);

-- Which night of the live record was published where; a night goes to a target once. hash: of the newest night in it.
CREATE TABLE IF NOT EXISTS live_record_releases (
    hash VARCHAR NOT NULL, target VARCHAR NOT NULL, commit VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'), PRIMARY KEY (hash, target)
);

-- What was released where; a content goes to a target once. content_hash: of the files that make the model act. target: 'local'
-- (FINJEPA_HOME/releases/<tag>) or the address of a Hub repository. commit: on the Hub, NULL for 'local'.
CREATE TABLE IF NOT EXISTS releases (
    checkpoint VARCHAR NOT NULL, content_hash VARCHAR NOT NULL, target VARCHAR NOT NULL, commit VARCHAR, tag VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'), PRIMARY KEY (content_hash, target)
);
