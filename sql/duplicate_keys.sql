-- The (symbol, date) that a revision has more than once. The rows of a revision lie in order, so twins are neighbours.
CREATE OR REPLACE TEMPORARY TABLE duplicate_keys AS
SELECT DISTINCT symbol, date
FROM (
    SELECT symbol, date, lag(symbol) OVER () AS symbol_before, lag(date) OVER () AS date_before
    FROM raw_price_versions
    WHERE first_revision = {revision}
)
WHERE symbol = symbol_before AND date = date_before
