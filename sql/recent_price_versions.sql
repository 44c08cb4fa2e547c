-- The rows of the symbols that a revision touched, from a month before its first new day on, in order.
SELECT * FROM ({held})
WHERE date >= (SELECT min(date) - 45 FROM raw_price_versions WHERE first_revision = {revision})
    AND symbol IN (SELECT symbol FROM raw_price_versions WHERE first_revision = {revision})
ORDER BY symbol, date
