-- Adjusted closes are compared with the sound row before, and where that jumps, with the median of the five before: a bad
-- tick is caught on its day, the return to normal is not, and neither needs the day after.
UPDATE raw_price_versions SET broken = broken | {bit}
WHERE first_revision = {revision} AND (symbol, date) IN (
    WITH sound AS (
        SELECT symbol, date, first_revision, coalesce(adj_close, close) AS price
        FROM ({rows}) WHERE broken & {hard} = 0
    ),
    jumping AS (
        SELECT DISTINCT symbol FROM (
            SELECT symbol, lag(symbol) OVER () AS symbol_before, price / lag(price) OVER () AS ratio FROM sound
        )
        WHERE symbol = symbol_before AND ratio NOT BETWEEN 0.1 AND 4
    )
    SELECT (symbol, date) FROM (
        SELECT symbol, date, first_revision, price / lag(price) OVER history AS ratio,
            price / median(price) OVER (history ROWS BETWEEN 5 PRECEDING AND 1 PRECEDING) AS level_ratio
        FROM sound SEMI JOIN jumping USING (symbol)
        WINDOW history AS (PARTITION BY symbol ORDER BY date)
    )
    WHERE first_revision = {revision} AND ratio NOT BETWEEN 0.1 AND 4 AND level_ratio NOT BETWEEN 0.1 AND 4
)
