-- One row an entity, in the panel's order. What its holder gets beyond the last close is asked only of one that has ended.
SELECT entity, symbol, min(date) AS first_date, max(date) AS last_date, count(*) AS observations,
    coalesce(any_value(delisting_return), 0)::DOUBLE AS delisting_return
FROM main.adjusted_prices JOIN main.entities USING (entity)
GROUP BY entity, symbol
ORDER BY entity
