-- The rows that a revision added and those that they follow on, in order.
FROM earlier_price_versions
UNION ALL
SELECT symbol, date, close, adj_close, volume, broken, first_revision FROM raw_price_versions WHERE first_revision = {revision}
ORDER BY symbol, date
