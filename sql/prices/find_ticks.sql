-- The rows at which a quantity is beyond its least and largest ratio to both the sound row before and the median of the five before
-- that, and comes back to within a factor of two of that median in one of the five rows that follow; with the rows in
-- between. A rise on a volume that is many times the usual one (median of the twenty rows before) is no tick, even if much of it is
-- lost again. The rows come one symbol after the other, by date.
INSERT INTO tick_rows
WITH sound AS (
    SELECT symbol, date, volume, {quantity} AS quantity FROM ({rows}) WHERE broken & {firm} = 0 AND {quantity} > 0
),
jumping AS (
    SELECT symbol FROM sound
    QUALIFY symbol = lag(symbol) OVER () AND quantity / lag(quantity) OVER () NOT BETWEEN {low} AND {high}
),
placed AS (
    SELECT symbol, date, quantity, row_number() OVER history AS place, quantity / lag(quantity) OVER history AS ratio,
        median(quantity) OVER (history ROWS BETWEEN 5 PRECEDING AND 1 PRECEDING) AS level,
        volume / nullif(median(volume) OVER (history ROWS BETWEEN 20 PRECEDING AND 1 PRECEDING), 0) AS heaviness
    FROM sound SEMI JOIN jumping USING (symbol)
    WINDOW history AS (PARTITION BY symbol ORDER BY date)
),
spans AS (
    SELECT jump.symbol, jump.place AS first, min(after.place) - 1 AS last
    FROM placed AS jump JOIN placed AS after
        ON after.symbol = jump.symbol AND after.place BETWEEN jump.place + 1 AND jump.place + 5
    WHERE jump.ratio NOT BETWEEN {low} AND {high} AND jump.quantity / jump.level NOT BETWEEN {low} AND {high}
        AND NOT coalesce(jump.ratio > 1 AND jump.heaviness > {heavy}, false) AND after.quantity / jump.level BETWEEN 0.5 AND 2
    GROUP BY jump.symbol, jump.place
)
SELECT DISTINCT placed.symbol, placed.date, {bit}
FROM placed JOIN spans ON spans.symbol = placed.symbol AND placed.place BETWEEN spans.first AND spans.last
