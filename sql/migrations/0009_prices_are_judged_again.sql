-- Volumes may be fractions. Digests of rows hash the volume, and are those of the rows that are not ended.
CREATE TABLE IF NOT EXISTS main.raw_price_versions (
    feed_id USMALLINT, first_revision INTEGER, symbol VARCHAR, date DATE,
    open DOUBLE, high DOUBLE, low DOUBLE, close DOUBLE, volume DOUBLE, adj_close DOUBLE,
    broken UINTEGER, unreadable VARCHAR
);
CREATE TABLE IF NOT EXISTS main.raw_price_ends (
    feed_id USMALLINT, first_revision INTEGER, symbol VARCHAR, date DATE, last_revision INTEGER
);
CREATE TABLE IF NOT EXISTS main.price_digests (
    feed_id USMALLINT, symbol VARCHAR, year SMALLINT, n BIGINT, folded UBIGINT, total HUGEINT
);
ALTER TABLE main.raw_price_versions ALTER COLUMN volume TYPE DOUBLE;
DELETE FROM main.price_digests;
INSERT INTO main.price_digests
SELECT feed_id, symbol, year, count(*), bit_xor(row_hash), sum(row_hash::HUGEINT)
FROM (
    SELECT feed_id, symbol, year(date)::SMALLINT AS year,
        hash(date, open, high, low, close, volume, adj_close, unreadable) AS row_hash
    FROM main.raw_price_versions AS version
    WHERE NOT EXISTS (
        FROM main.raw_price_ends AS ended
        WHERE ended.feed_id = version.feed_id AND ended.first_revision = version.first_revision
            AND ended.symbol IS NOT DISTINCT FROM version.symbol AND ended.date IS NOT DISTINCT FROM version.date
    )
)
GROUP BY feed_id, symbol, year;

-- The rows that came, good or bad: all but those without a day (1), out of range (2), without a symbol (8) and duplicates (256).
CREATE TABLE IF NOT EXISTS main.session_counts (feed_id USMALLINT, date DATE, n BIGINT);
ALTER TABLE main.session_counts ADD COLUMN IF NOT EXISTS came BIGINT;
DELETE FROM main.session_counts;
INSERT INTO main.session_counts
SELECT feed_id, date, count(*) FILTER (WHERE broken & 20991 = 0), count(*)
FROM main.raw_price_versions AS version
WHERE broken & 267 = 0 AND NOT EXISTS (
    FROM main.raw_price_ends AS ended
    WHERE ended.feed_id = version.feed_id AND ended.first_revision = version.first_revision
        AND ended.symbol IS NOT DISTINCT FROM version.symbol AND ended.date IS NOT DISTINCT FROM version.date
)
GROUP BY feed_id, date;

-- A revision of before has no judgement: the next ingestion of its feed judges its rows by the rules of now.
ALTER TABLE IF EXISTS main.revisions ADD COLUMN IF NOT EXISTS accepted VARCHAR[];
ALTER TABLE IF EXISTS main.revisions ADD COLUMN IF NOT EXISTS judgement INTEGER;
ALTER TABLE IF EXISTS main.revisions ADD COLUMN IF NOT EXISTS kept_rows BIGINT;
CREATE TABLE IF NOT EXISTS main.price_refusals (
    feed VARCHAR, refused_at TIMESTAMP, rule VARCHAR, severity VARCHAR, rows DOUBLE, bounds VARCHAR, examples VARCHAR[],
    reason VARCHAR
);
CREATE TABLE IF NOT EXISTS main.symbol_calendars (feed_id USMALLINT, symbol VARCHAR, calendar VARCHAR);
CREATE TABLE IF NOT EXISTS main.clock_sessions (feed_id USMALLINT, calendar VARCHAR, date DATE, clock_date DATE);
