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
