-- One row an entity, in the panel's order: when it was observed, and a fingerprint of what the prices stage concluded about
-- it, of everything (whole) and of what is not after $known (known). With the versions of its raw rows (panel_restated) it
-- tells a later panel whether anything of the entity has changed. What its holder gets beyond the last close is asked only
-- of an entity that has ended.
WITH observed AS (
    SELECT entity, min(date) AS first_date, max(date) AS last_date FROM main.adjusted_prices GROUP BY entity
),
conclusions AS (
    SELECT symbol, bit_xor(fingerprint) AS whole, bit_xor(fingerprint) FILTER (date <= $known) AS known
    FROM (
        SELECT symbol, date, hash(date) AS fingerprint FROM main.stale_prices
        UNION ALL
        SELECT symbol, date, hash(date, action, value) FROM main.corporate_actions
    )
    GROUP BY symbol
)
SELECT entity, symbol, observed.first_date, observed.last_date,
    xor(hash(observed.first_date, adjusted), coalesce(whole, 0)) AS whole,
    xor(hash(observed.first_date, adjusted), coalesce(known, 0)) AS known,
    coalesce(delisting_return, 0)::DOUBLE AS delisting_return
FROM observed JOIN main.entities USING (entity) LEFT JOIN conclusions USING (symbol)
ORDER BY entity
