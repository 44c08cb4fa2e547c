-- What the champion gate looked at, one row a finding, for each verdict of `champions`.
CREATE TABLE IF NOT EXISTS main.champion_checks (
    checkpoint VARCHAR NOT NULL,  -- the challenger that was judged
    data_version VARCHAR NOT NULL,
    incumbent VARCHAR,  -- the champion it was measured against; NULL when there was none
    name VARCHAR NOT NULL,
    passed BOOLEAN,  -- NULL where it could not be said
    blocking BOOLEAN NOT NULL,  -- whether it forbids a promotion when it does not hold
    detail VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL  -- that of the verdict
);
