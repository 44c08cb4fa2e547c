-- One row an entity, in the panel's order: how much of it there is, which columns hold anything, and a fingerprint of all
-- of it (whole) and of what is not after $known (known), by which a later panel tells what has changed. What its holder
-- gets beyond the last close is asked only of an entity that has ended.
SELECT
    entity,
    count(*) AS observations,
    min(date) AS first_date,
    max(date) AS last_date,
    count(open) > 0 AS open,
    count(high) > 0 AS high,
    count(low) > 0 AS low,
    count(volume) > 0 AS volume,
    count(dollar_volume) > 0 AS dollar_volume,
    bit_xor(fingerprint) AS whole,
    coalesce(bit_xor(fingerprint) FILTER (date <= $known), 0) AS known,
    coalesce(any_value(delisting_return), 0) AS delisting_return
FROM (
    SELECT *, hash(date, open, high, low, close, volume, dollar_volume, tradable) AS fingerprint
    FROM main.adjusted_prices
)
LEFT JOIN (SELECT entity, delisting_return FROM main.entities) USING (entity)
GROUP BY entity
ORDER BY entity
