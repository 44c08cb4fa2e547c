-- One table for the history of prices: a row has the revisions in which it was valid, which were in another table. Digests and counts
-- of the newest revision go, and so do the sessions that were dropped whole: their rows get the bit of the rule, in those revisions.
CREATE TABLE IF NOT EXISTS main.feeds (feed_id USMALLINT, feed VARCHAR, source VARCHAR, options_json VARCHAR);
CREATE TABLE IF NOT EXISTS main.revisions (
    revision INTEGER, feed_id USMALLINT, version VARCHAR, data_version VARCHAR, created_at TIMESTAMP,
    total_rows BIGINT, new_rows BIGINT, ended_rows BIGINT, quarantined_rows BIGINT,
    first_date DATE, last_date DATE, columns VARCHAR[],
    files STRUCT("name" VARCHAR, sha256 VARCHAR)[], outcomes_json VARCHAR,
    accepted VARCHAR[], judgement INTEGER, kept_rows BIGINT
);
CREATE TABLE IF NOT EXISTS main.active_view (feed_id USMALLINT, revision INTEGER);
CREATE TABLE IF NOT EXISTS main.dropped_sessions (feed_id USMALLINT, revision INTEGER, date DATE, rule VARCHAR);

ALTER TABLE main.raw_price_versions RENAME TO price_history;
ALTER TABLE main.price_history RENAME COLUMN first_revision TO valid_from;
ALTER TABLE main.price_history ADD COLUMN valid_to INTEGER;
UPDATE main.price_history AS row
SET valid_to = (
    SELECT min(revision) FROM main.revisions AS later
    WHERE later.feed_id = ended.feed_id AND later.revision > ended.last_revision
)
FROM main.raw_price_ends AS ended
WHERE ended.feed_id = row.feed_id AND ended.first_revision = row.valid_from
    AND ended.symbol IS NOT DISTINCT FROM row.symbol AND ended.date IS NOT DISTINCT FROM row.date;

-- A row of a dropped session becomes as many as there are runs of revisions with the same rule, or none.
CREATE TEMPORARY TABLE split_rows AS
WITH lived AS (
    SELECT row.rowid AS row_id, revisions.revision, valid_to,
        CASE rule WHEN 'thin_session' THEN 1073741824 WHEN 'late_session' THEN 2147483648 ELSE 0 END::UINTEGER AS bit
    FROM main.price_history AS row
    SEMI JOIN main.dropped_sessions AS ever ON ever.feed_id = row.feed_id AND ever.date = row.date
    JOIN main.revisions ON revisions.feed_id = row.feed_id AND revisions.revision >= valid_from
        AND (valid_to IS NULL OR revisions.revision < valid_to)
    LEFT JOIN main.dropped_sessions AS session ON session.feed_id = row.feed_id
        AND session.revision = revisions.revision AND session.date = row.date
),
runs AS (FROM lived QUALIFY bit IS DISTINCT FROM lag(bit) OVER (PARTITION BY row_id ORDER BY revision))
SELECT row_id, bit, revision AS valid_from, coalesce(lead(revision) OVER (PARTITION BY row_id ORDER BY revision), valid_to) AS valid_to
FROM runs;

INSERT INTO main.price_history
SELECT row.* REPLACE (split.valid_from AS valid_from, broken | bit AS broken, split.valid_to AS valid_to)
FROM main.price_history AS row JOIN split_rows AS split ON row.rowid = row_id
ORDER BY split.valid_from, symbol, date;

DELETE FROM main.price_history WHERE rowid IN (SELECT row_id FROM split_rows);

DROP TABLE split_rows;
DROP TABLE main.raw_price_ends;
DROP TABLE main.dropped_sessions;
DROP TABLE main.price_digests;
DROP TABLE main.session_counts;
ALTER TABLE IF EXISTS main.entities ADD COLUMN IF NOT EXISTS observations BIGINT;

-- The views of before; those of now are made with the schema.
DROP VIEW IF EXISTS main.seen_prices;
DROP VIEW IF EXISTS main.prices;
DROP VIEW IF EXISTS main.quarantined_prices;
DROP VIEW IF EXISTS main.raw_prices;
