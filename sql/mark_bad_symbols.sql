-- Judged on the distinct symbols: a pattern on every row would cost more than the load. `X#2` is how the second company behind
-- the symbol X is called (entities.sql), so that no symbol may end so.
UPDATE raw_price_versions SET broken = broken | {bit}
WHERE first_revision = {revision} AND coalesce(symbol, '') IN (
    SELECT symbol FROM (SELECT DISTINCT coalesce(symbol, '') AS symbol FROM raw_price_versions WHERE first_revision = {revision})
    WHERE length(symbol) NOT BETWEEN 1 AND 64 OR regexp_matches(symbol, '\p{{C}}|#[0-9]+$')
)
