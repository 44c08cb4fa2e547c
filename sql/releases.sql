-- What was released where; a content goes to a target once.
CREATE TABLE IF NOT EXISTS main.releases (
    checkpoint VARCHAR NOT NULL,
    content_hash VARCHAR NOT NULL,  -- of the files that make the model act
    target VARCHAR NOT NULL,  -- 'local' (FINJEPA_HOME/releases/<tag>) or the address of a Hub repository
    commit VARCHAR,  -- on the Hub; NULL for 'local'
    tag VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
    PRIMARY KEY (content_hash, target)
);
