-- The factor adj_close/close is compared with the sound row before, and where that jumps, with the median of the five before:
-- a bad tick is caught on its day and the return to normal is not.
UPDATE raw_price_versions SET broken = broken | {bit}
WHERE first_revision = {revision} AND (symbol, date) IN (
    WITH sound AS (
        SELECT symbol, date, first_revision, adj_close / close AS factor
        FROM ({rows}) WHERE broken & {hard} = 0 AND adj_close > 0
    ),
    jumping AS (
        SELECT DISTINCT symbol FROM (
            SELECT symbol, lag(symbol) OVER () AS symbol_before, factor / lag(factor) OVER () AS ratio FROM sound
        )
        WHERE symbol = symbol_before AND ratio NOT BETWEEN 0.01 AND 100
    )
    SELECT (symbol, date) FROM (
        SELECT symbol, date, first_revision, factor / lag(factor) OVER history AS ratio,
            factor / median(factor) OVER (history ROWS BETWEEN 5 PRECEDING AND 1 PRECEDING) AS level_ratio
        FROM sound SEMI JOIN jumping USING (symbol)
        WINDOW history AS (PARTITION BY symbol ORDER BY date)
    )
    WHERE first_revision = {revision} AND ratio NOT BETWEEN 0.01 AND 100 AND level_ratio NOT BETWEEN 0.01 AND 100
)
