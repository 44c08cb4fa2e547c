-- Every verdict of the champion gate; the champion is the checkpoint of the newest row that says 'promoted'.
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
