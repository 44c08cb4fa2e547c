-- n, folded and total of groups of rows: equal for equal multisets of rows, whatever their order. The XOR alone would not
-- see a row that comes twice.
SELECT {keys}, count(*) AS n, bit_xor(row_hash) AS folded, sum(row_hash::HUGEINT) AS total
FROM (
    SELECT symbol, date, hash(date, open, high, low, close, volume, adj_close, unreadable) AS row_hash FROM ({rows})
)
GROUP BY ALL
