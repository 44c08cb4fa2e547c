-- Of the rows of a (symbol, date) the one with the fewest broken rules, then the smallest values, stays: the choice does
-- not depend on the order in which the rows came.
UPDATE raw_price_versions SET broken = broken | {bit}
WHERE first_revision = {revision} AND rowid IN (
    SELECT row_id FROM (
        SELECT version.rowid AS row_id, row_number() OVER (
            PARTITION BY symbol, date
            ORDER BY bit_count(broken & {hard}), broken, close, open, high, low, volume, adj_close
        ) AS place
        FROM raw_price_versions AS version SEMI JOIN duplicate_keys USING (symbol, date)
        WHERE first_revision = {revision}
    )
    WHERE place > 1
)
