-- The versions that the newest revision of a feed has.
SELECT symbol, date, open, high, low, close, volume, adj_close, broken, unreadable, first_revision
FROM raw_price_versions AS version
WHERE feed_id = {feed_id} AND NOT EXISTS (
    FROM raw_price_ends AS ended
    WHERE ended.feed_id = {feed_id} AND ended.first_revision = version.first_revision
        AND ended.symbol IS NOT DISTINCT FROM version.symbol AND ended.date IS NOT DISTINCT FROM version.date
)
