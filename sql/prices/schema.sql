-- A source at a place: `sample`, `files:/folder`, `hf:owner/name`. options_json makes the same source again.
CREATE SEQUENCE IF NOT EXISTS feed_ids START 1;
CREATE TABLE IF NOT EXISTS feeds (feed_id USMALLINT, feed VARCHAR, source VARCHAR, options_json VARCHAR);

-- A state of a feed that differed from the one before; numbers ascend over all feeds. files: their hashes. accepted: rules and
-- expectations that a person let pass, up to this revision. judgement: version of the rules. kept_rows: rows of earlier
-- deliveries that the files of this one do not cover.
CREATE TABLE IF NOT EXISTS revisions (
    revision INTEGER, feed_id USMALLINT, version VARCHAR, data_version VARCHAR, created_at TIMESTAMP,
    total_rows BIGINT, new_rows BIGINT, ended_rows BIGINT, quarantined_rows BIGINT, kept_rows BIGINT,
    first_date DATE, last_date DATE, columns VARCHAR[], files VARCHAR[], outcomes_json VARCHAR,
    accepted VARCHAR[], judgement INTEGER
);

-- Every row as its source gave it, with the revisions of its feed in which it was valid: from valid_from on, and before valid_to (NULL: it
-- still is). Of a row that was committed nothing changes but valid_to, once. broken: bits of contract.py. unreadable: the text of a
-- date or a number that could not be read. No primary key: it costs three times the load; uniqueness is a rule instead.
CREATE TABLE IF NOT EXISTS price_history (
    feed_id USMALLINT, valid_from INTEGER, symbol VARCHAR, date DATE,
    open DOUBLE, high DOUBLE, low DOUBLE, close DOUBLE, volume DOUBLE, adj_close DOUBLE,
    broken UINTEGER, unreadable VARCHAR, valid_to INTEGER
);

-- The calendars of a feed whose symbols have several, and when a row of each is known: at the first session of the feed's clock
-- whose close is not before that of the row's own exchange.
CREATE TABLE IF NOT EXISTS symbol_calendars (feed_id USMALLINT, symbol VARCHAR, calendar VARCHAR);
CREATE TABLE IF NOT EXISTS clock_sessions (feed_id USMALLINT, calendar VARCHAR, date DATE, clock_date DATE);

-- The feed and the revision that the views show: one row. And those, with the thresholds, that the derived tables follow from.
CREATE TABLE IF NOT EXISTS active_view (feed_id USMALLINT, revision INTEGER);
CREATE TABLE IF NOT EXISTS derived_state (feed_id USMALLINT, revision INTEGER, options_json VARCHAR);

-- Who is eligible for a decision at the close of a date, from what was known by then (derived.sql).
CREATE TABLE IF NOT EXISTS universe (date DATE, entity VARCHAR);

-- Views; one that changes needs a migration that drops it.
-- All rows of the active feed as they were at the active revision, good and bad.
CREATE VIEW IF NOT EXISTS seen_prices AS
SELECT symbol, date, open, high, low, close, volume, adj_close, broken, unreadable, valid_from
FROM price_history JOIN active_view USING (feed_id)
WHERE valid_from <= revision AND (valid_to IS NULL OR valid_to > revision);

-- The sound ones (16383: the bits of the hard rules). What is no price is NULL; volume is in shares as reported.
CREATE VIEW IF NOT EXISTS prices AS
SELECT symbol, date,
    CASE WHEN open > 0 AND open < 1e12 THEN open END AS open,
    CASE WHEN high > 0 AND high < 1e12 THEN high END AS high,
    CASE WHEN low > 0 AND low < 1e12 THEN low END AS low,
    close, volume, CASE WHEN adj_close > 0 AND adj_close < 1e15 THEN adj_close END AS adj_close
FROM seen_prices WHERE broken & 16383 = 0;

-- The others: the first hard rule that each broke, and all of them. A later place in the list is a higher bit.
CREATE VIEW IF NOT EXISTS quarantined_prices AS
SELECT * EXCLUDE (broken), rules[1] AS rule FROM (
    SELECT *, list_filter(list_transform([
        'unreadable_date', 'date_out_of_range', 'unreadable_number', 'bad_symbol', 'close_not_positive', 'adj_close_not_positive',
        'ohlc_order', 'volume_not_a_count', 'duplicate', 'factor_step', 'impossible_move', 'stray_session', 'thin_session', 'late_session'
    ], lambda name, place: CASE WHEN (broken >> (place - 1)) & 1 = 1 THEN name END), lambda name: name IS NOT NULL) AS rules
    FROM seen_prices WHERE broken & 16383 <> 0
);

-- Every version of every row of every feed, with the revisions in which it was valid.
CREATE VIEW IF NOT EXISTS raw_prices AS
SELECT feed, price_history.* EXCLUDE (feed_id) FROM price_history JOIN feeds USING (feed_id);
