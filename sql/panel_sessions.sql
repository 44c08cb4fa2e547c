-- The sessions of the prices, with a fingerprint of the universe on each.
SELECT date, coalesce(fingerprint, 0) AS universe
FROM main.price_sessions
LEFT JOIN (SELECT date, bit_xor(hash(entity)) AS fingerprint FROM main.universe GROUP BY date) USING (date)
ORDER BY date
