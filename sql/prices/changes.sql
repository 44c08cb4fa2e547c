-- What a delivery changes. A key (symbol, date) changes as a whole: all of its rows end, and all of its delivered rows are appended.
-- The rows of each symbol and year are compared by a hash first, so that rows meet rows only where something has changed.
CREATE OR REPLACE TEMPORARY TABLE changed_years AS
SELECT coalesce(new.symbol, old.symbol) AS symbol, coalesce(new.year, old.year) AS year
FROM ({delivered_years}) AS new
FULL JOIN ({held_years}) AS old ON new.symbol IS NOT DISTINCT FROM old.symbol AND new.year IS NOT DISTINCT FROM old.year
WHERE {again} OR (new.n, new.folded, new.total) IS DISTINCT FROM (old.n, old.folded, old.total);

CREATE OR REPLACE TEMPORARY TABLE delivered_rows AS
SELECT row.* FROM ({delivered}) AS row SEMI JOIN changed_years AS key
    ON key.symbol IS NOT DISTINCT FROM row.symbol AND key.year IS NOT DISTINCT FROM year(row.date);

CREATE OR REPLACE TEMPORARY TABLE held_rows AS
SELECT row.* FROM ({held}) AS row SEMI JOIN changed_years AS key
    ON key.symbol IS NOT DISTINCT FROM row.symbol AND key.year IS NOT DISTINCT FROM year(row.date);

-- withdrawn: nothing was delivered of the key.
CREATE OR REPLACE TEMPORARY TABLE changed_keys AS
SELECT coalesce(new.symbol, old.symbol) AS symbol, coalesce(new.date, old.date) AS date, new.n IS NULL AS withdrawn
FROM ({delivered_keys}) AS new
FULL JOIN ({held_keys}) AS old ON new.symbol IS NOT DISTINCT FROM old.symbol AND new.date IS NOT DISTINCT FROM old.date
WHERE {again} OR (new.n, new.folded, new.total) IS DISTINCT FROM (old.n, old.folded, old.total)
