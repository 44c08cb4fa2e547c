-- The sound rows that one of two revisions of a feed shows and the other does not: `came` with {after}, or went.
CREATE OR REPLACE TEMPORARY TABLE changed_prices AS
WITH dropped_before AS (
    SELECT date FROM dropped_sessions WHERE feed_id = {feed_id} AND revision = {before}
),
dropped_after AS (
    SELECT date FROM dropped_sessions WHERE feed_id = {feed_id} AND revision = {after}
),
moved_dates AS (
    (FROM dropped_before EXCEPT FROM dropped_after) UNION (FROM dropped_after EXCEPT FROM dropped_before)
),
sound AS (
    SELECT symbol, date, first_revision, close, volume, coalesce(adj_close > 0 AND adj_close < 1e15, false) AS priced
    FROM raw_price_versions WHERE feed_id = {feed_id} AND broken & {hard} = 0
),
ended AS (
    SELECT symbol, date, first_revision, last_revision FROM raw_price_ends WHERE feed_id = {feed_id} AND last_revision < {after}
)
SELECT true AS came, symbol, date, close, volume, priced
FROM sound ANTI JOIN ended USING (symbol, date, first_revision)
WHERE first_revision BETWEEN {before} + 1 AND {after} AND date NOT IN (FROM dropped_after)
UNION ALL
SELECT false, symbol, date, close, volume, priced
FROM sound JOIN ended USING (symbol, date, first_revision)
WHERE first_revision <= {before} AND last_revision >= {before} AND date NOT IN (FROM dropped_before)
UNION ALL
SELECT date IN (FROM dropped_before), symbol, date, close, volume, priced
FROM sound SEMI JOIN moved_dates USING (date) ANTI JOIN ended USING (symbol, date, first_revision)
WHERE first_revision <= {before}
