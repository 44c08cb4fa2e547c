-- The rows that are worked on together: those of a run of symbols, or the tail of all of them.
CREATE OR REPLACE TEMPORARY TABLE block_prices AS
SELECT symbol, date, session, open, high, low, close, volume, adj_close
FROM clocked_prices JOIN price_sessions USING (date)
WHERE {rows}
