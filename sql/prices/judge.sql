-- The rows of a feed whose judgement the rows around them have changed: ticks (tick_rows), and sessions of which only a part has come.
-- A tick is looked for from a month before the first new row of each symbol on. What a session is compared with is the median of the
-- 20 before, good rows and bad; late ones are asked for of whole markets only, and neither where symbols trade on different days.
CREATE OR REPLACE TEMPORARY TABLE rejudged AS
WITH parts AS (
    SELECT date, CASE WHEN n < 0.2 * usual THEN {thin_session} ELSE {late_session} END AS bit
    FROM (
        SELECT date, count(*) AS n, date = max(date) OVER () AS newest,
            median(count(*)) OVER (ORDER BY date ROWS BETWEEN 20 PRECEDING AND 1 PRECEDING) AS usual
        FROM price_history WHERE feed_id = {feed_id} AND valid_to IS NULL AND broken & {unplaced} = 0 GROUP BY date
    )
    WHERE NOT {several} AND (n < 0.2 * usual OR newest AND usual >= 50 AND n < 0.9 * usual)
)
SELECT history.rowid AS row_id, valid_from, history.symbol, history.date, broken AS broken_before, (
        CASE WHEN broken & {firm} = 0 AND history.date >= first_new - 30
            THEN broken & ~{ticks}::UINTEGER | coalesce(tick_rows.bit, 0) ELSE broken END
        & ~{sessions}::UINTEGER | coalesce(parts.bit, 0)
    )::UINTEGER AS broken_now
FROM price_history AS history
LEFT JOIN touched_symbols AS touched ON touched.symbol = history.symbol
LEFT JOIN (SELECT symbol, date, bit_or(bit) AS bit FROM tick_rows GROUP BY ALL) AS tick_rows
    ON tick_rows.symbol = history.symbol AND tick_rows.date = history.date
LEFT JOIN parts ON parts.date = history.date
WHERE feed_id = {feed_id} AND valid_to IS NULL AND broken <> broken_now;

UPDATE price_history SET broken = broken_now FROM rejudged WHERE price_history.rowid = row_id AND rejudged.valid_from = {revision};

INSERT INTO price_history
SELECT history.* REPLACE ({revision} AS valid_from, broken_now AS broken)
FROM price_history AS history JOIN rejudged ON history.rowid = row_id WHERE rejudged.valid_from < {revision};

UPDATE price_history SET valid_to = {revision} WHERE rowid IN (SELECT row_id FROM rejudged WHERE valid_from < {revision})
