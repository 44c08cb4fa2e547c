-- The (symbol, year) in which a whole snapshot differs from the newest revision of the feed.
CREATE OR REPLACE TEMPORARY TABLE changed_years AS
SELECT coalesce(new.symbol, old.symbol) AS symbol, coalesce(new.year, old.year) AS year
FROM ({digest}) AS new
FULL JOIN (FROM price_digests WHERE feed_id = {feed_id}) AS old
    ON new.symbol IS NOT DISTINCT FROM old.symbol AND new.year IS NOT DISTINCT FROM old.year
WHERE (new.n, new.folded, new.total) IS DISTINCT FROM (old.n, old.folded, old.total)
