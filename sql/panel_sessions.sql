-- Every date of the prices, with a fingerprint of the universe on it.
SELECT date, coalesce(fingerprint, 0) AS universe
FROM (SELECT DISTINCT date FROM main.adjusted_prices)
LEFT JOIN (SELECT date, bit_xor(hash(entity)) AS fingerprint FROM main.universe GROUP BY date) USING (date)
ORDER BY date
