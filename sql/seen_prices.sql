-- All rows of the active feed as they were at the active revision, good and bad.
CREATE OR REPLACE VIEW seen_prices AS
SELECT symbol, date, open, high, low, close, volume, adj_close, broken, unreadable, first_revision
FROM raw_price_versions AS version
WHERE feed_id = {feed_id} AND first_revision <= {revision}
    AND NOT EXISTS (
        FROM raw_price_ends AS ended
        WHERE ended.feed_id = {feed_id} AND ended.last_revision < {revision}
            AND ended.first_revision = version.first_revision
            AND ended.symbol IS NOT DISTINCT FROM version.symbol AND ended.date IS NOT DISTINCT FROM version.date
    )
