-- Simple returns from the close before to the open, by entity and date; NULL where there is no open.
SELECT
    entity,
    date,
    open / lag(close) OVER (PARTITION BY entity ORDER BY date) - 1 AS overnight
FROM main.adjusted_prices
ORDER BY entity, date
