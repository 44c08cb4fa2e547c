-- One row an entity, in the panel's order: how much of it there is, which columns hold anything, and a fingerprint of all
-- of it (whole) and of what is not after $known (known), by which a later panel tells what has changed.
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
    coalesce(bit_xor(fingerprint) FILTER (date <= $known), 0) AS known
FROM (
    SELECT *, hash(date, open, high, low, close, volume, dollar_volume, tradable) AS fingerprint
    FROM main.adjusted_prices
)
GROUP BY entity
ORDER BY entity
