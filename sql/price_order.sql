-- How many rows come out of order, or twice, read in the order in which they lie.
SELECT count(*) FILTER (WHERE symbol < symbol_before OR (symbol = symbol_before AND date < date_before)) AS out_of_order
FROM (
    SELECT symbol, date, lag(symbol) OVER () AS symbol_before, lag(date) OVER () AS date_before FROM ({rows})
)
