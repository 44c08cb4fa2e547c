-- What is stored of prices. Nothing here is ever updated after the transaction that wrote it, save the one row of
-- active_view and the ledgers of the newest revision (price_digests, session_counts), which speed the next ingestion up.

CREATE SEQUENCE IF NOT EXISTS feed_ids START 1;

-- A source at a place: `sample`, `files:/folder`, `hf:owner/name`. options_json makes the same source again.
CREATE TABLE IF NOT EXISTS feeds (
    feed_id USMALLINT, feed VARCHAR, source VARCHAR, options_json VARCHAR
);

-- A state of a feed that differed from the one before. files: name, sha256 (the order is that of reading). accepted: rules and
-- expectations that a person let pass, up to this revision. judgement: version of the rules. kept_rows: rows of earlier
-- deliveries that the files of this one do not cover.
CREATE TABLE IF NOT EXISTS revisions (
    revision INTEGER, feed_id USMALLINT, version VARCHAR, data_version VARCHAR, created_at TIMESTAMP,
    total_rows BIGINT, new_rows BIGINT, ended_rows BIGINT, quarantined_rows BIGINT,
    first_date DATE, last_date DATE, columns VARCHAR[],
    files STRUCT("name" VARCHAR, sha256 VARCHAR)[], outcomes_json VARCHAR,
    accepted VARCHAR[], judgement INTEGER, kept_rows BIGINT
);

-- What refused a batch: the newest attempt of each feed. rule: an expectation of the contract, or a rule that rows broke.
CREATE TABLE IF NOT EXISTS price_refusals (
    feed VARCHAR, refused_at TIMESTAMP, rule VARCHAR, severity VARCHAR, rows DOUBLE, bounds VARCHAR, examples VARCHAR[],
    reason VARCHAR
);

-- The calendars of a feed whose symbols have several, and when a row of each is known: at the first session of the feed's
-- clock whose close is not before the close of the row's own exchange.
CREATE TABLE IF NOT EXISTS symbol_calendars (feed_id USMALLINT, symbol VARCHAR, calendar VARCHAR);

CREATE TABLE IF NOT EXISTS clock_sessions (feed_id USMALLINT, calendar VARCHAR, date DATE, clock_date DATE);

-- Every version of every row, as the source gave it. broken: bits of price_rules. unreadable: the text of a date or a
-- number that could not be read. No primary key: it costs three times the load and half the size again; uniqueness is
-- a rule instead.
CREATE TABLE IF NOT EXISTS raw_price_versions (
    feed_id USMALLINT, first_revision INTEGER, symbol VARCHAR, date DATE,
    open DOUBLE, high DOUBLE, low DOUBLE, close DOUBLE, volume DOUBLE, adj_close DOUBLE,
    broken UINTEGER, unreadable VARCHAR
);

-- The keys whose version was no longer there after last_revision (restated or withdrawn).
CREATE TABLE IF NOT EXISTS raw_price_ends (
    feed_id USMALLINT, first_revision INTEGER, symbol VARCHAR, date DATE, last_revision INTEGER
);

-- What each (symbol, year) of a feed's newest revision hashes to; tells what a new revision changes without a join.
CREATE TABLE IF NOT EXISTS price_digests (
    feed_id USMALLINT, symbol VARCHAR, year SMALLINT, n BIGINT, folded UBIGINT, total HUGEINT
);

-- Rows by day of a feed's newest revision: n that broke no hard rule of their own, came with those that did (but duplicates, and
-- rows without a symbol or on a day without a session).
CREATE TABLE IF NOT EXISTS session_counts (feed_id USMALLINT, date DATE, n BIGINT, came BIGINT);

-- The sessions that were dropped whole, by revision.
CREATE TABLE IF NOT EXISTS dropped_sessions (
    feed_id USMALLINT, revision INTEGER, date DATE, rule VARCHAR
);

-- The one view of prices that the tables show: a feed as it was at a revision.
CREATE TABLE IF NOT EXISTS active_view (
    feed_id USMALLINT, revision INTEGER
);

-- The view and the thresholds that the derived tables follow from; no row before they are first made.
CREATE TABLE IF NOT EXISTS derived_state (feed_id USMALLINT, revision INTEGER, options_json VARCHAR);
