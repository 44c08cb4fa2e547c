-- What each year of the active view hashes to, from its rows.
SELECT year(date) AS year, to_hex(bit_xor(hash(symbol, date, open, high, low, close, volume, adj_close))) AS digest
FROM prices GROUP BY year ORDER BY year
