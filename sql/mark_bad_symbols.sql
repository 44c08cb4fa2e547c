-- Judged on the distinct symbols: a pattern on every row would cost more than the load.
UPDATE raw_price_versions SET broken = broken | {bit}
WHERE first_revision = {revision} AND coalesce(symbol, '') IN (
    SELECT symbol FROM (SELECT DISTINCT coalesce(symbol, '') AS symbol FROM raw_price_versions WHERE first_revision = {revision})
    WHERE NOT regexp_full_match(symbol, '[A-Z0-9.^=-]{{1,12}}')
)
