-- The rows of the symbols that a revision touched, from a month before the first new day of each on, that it left as they are.
CREATE OR REPLACE TEMPORARY TABLE earlier_price_versions AS
SELECT symbol, date, close, adj_close, broken, first_revision
FROM ({held}) JOIN (
    SELECT symbol, min(date) - 45 AS since FROM raw_price_versions WHERE first_revision = {revision} GROUP BY symbol
) AS touched USING (symbol)
WHERE date >= DATE '{since}' AND date >= touched.since AND first_revision < {revision}
