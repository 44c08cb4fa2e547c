-- The rows of a feed whose judgement the rows around them have changed: ticks (tick_rows), and sessions of which only a part has come.
-- A tick is looked for from a month before the first new row of each symbol on. What a session is compared with is the median of the
-- 20 before, good rows and bad; late ones are asked for of whole markets only, and neither where symbols trade on different days.
CREATE OR REPLACE TEMPORARY TABLE rejudged AS
WITH counted AS (
    SELECT date, count(*) AS n FROM price_history
    WHERE feed_id = {feed_id} AND valid_to IS NULL AND broken & {unplaced} = 0 GROUP BY date
),
compared AS (
    SELECT date, n, median(n) OVER (ORDER BY date ROWS BETWEEN 20 PRECEDING AND 1 PRECEDING) AS usual,
        date = max(date) OVER () AS newest
    FROM counted
),
parts AS (
    SELECT date, CASE WHEN n < 0.2 * usual THEN {thin_session} ELSE {late_session} END AS bit FROM compared
    WHERE NOT {several} AND (n < 0.2 * usual OR newest AND usual >= 50 AND n < 0.9 * usual)
)
SELECT row_id, valid_from, symbol, date, broken AS broken_before, (ticked & ~{sessions}::UINTEGER | part)::UINTEGER AS broken
FROM (
    SELECT history.rowid AS row_id, history.valid_from, history.symbol, history.date, broken, coalesce(parts.bit, 0)::UINTEGER AS part,
        CASE WHEN broken & {firm} = 0 AND history.date >= first_new - 30
            THEN broken & ~{ticks}::UINTEGER | coalesce(tick_rows.bit, 0)::UINTEGER ELSE broken END AS ticked
    FROM price_history AS history
    LEFT JOIN touched_symbols AS touched ON touched.symbol = history.symbol
    LEFT JOIN tick_rows ON tick_rows.symbol = history.symbol AND tick_rows.date = history.date
    LEFT JOIN parts ON parts.date = history.date
    WHERE feed_id = {feed_id} AND valid_to IS NULL
)
WHERE broken <> (ticked & ~{sessions}::UINTEGER | part);

UPDATE price_history SET broken = rejudged.broken FROM rejudged
WHERE price_history.rowid = row_id AND rejudged.valid_from = {revision};

INSERT INTO price_history
SELECT history.* REPLACE ({revision} AS valid_from, rejudged.broken AS broken)
FROM price_history AS history JOIN rejudged ON history.rowid = row_id WHERE rejudged.valid_from < {revision};

UPDATE price_history SET valid_to = {revision}
WHERE rowid IN (SELECT row_id FROM rejudged WHERE valid_from < {revision})
