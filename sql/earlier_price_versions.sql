-- The rows of the symbols that a revision touched, from two months before the first new day of each on, that it left as they
-- are: what the new rows follow on, and what the new rows may judge anew.
CREATE OR REPLACE TEMPORARY TABLE earlier_price_versions AS
SELECT symbol, date, close, adj_close, volume, broken, first_revision
FROM ({held}) JOIN (
    SELECT symbol, min(date) - 60 AS since FROM raw_price_versions WHERE first_revision = {revision} GROUP BY symbol
) AS touched USING (symbol)
WHERE date >= DATE '{since}' AND date >= touched.since AND first_revision < {revision}
