-- The (symbol, date) whose rows differ between incoming_prices and outgoing_prices. A key changes as a whole: all of its
-- versions end, all of its rows are appended. withdrawn: it has no row any more.
CREATE OR REPLACE TEMPORARY TABLE changed_keys AS
SELECT coalesce(new.symbol, old.symbol) AS symbol, coalesce(new.date, old.date) AS date, new.n IS NULL AS withdrawn
FROM ({incoming}) AS new
FULL JOIN ({outgoing}) AS old
    ON new.symbol IS NOT DISTINCT FROM old.symbol AND new.date IS NOT DISTINCT FROM old.date
WHERE {again} OR (new.n, new.folded, new.total) IS DISTINCT FROM (old.n, old.folded, old.total)
