-- Every version of every row of every feed, with the first and the last revision of its feed in which it was seen.
CREATE OR REPLACE VIEW raw_prices AS
WITH newest AS (
    SELECT feed_id, feed, max(revision) AS revision FROM feeds JOIN revisions USING (feed_id) GROUP BY ALL
)
SELECT newest.feed, version.symbol, version.date, open, high, low, close, volume, adj_close,
    version.first_revision, coalesce(ended.last_revision, newest.revision) AS last_revision, broken, unreadable
FROM raw_price_versions AS version
JOIN newest USING (feed_id)
LEFT JOIN raw_price_ends AS ended
    ON ended.first_revision = version.first_revision
    AND ended.symbol IS NOT DISTINCT FROM version.symbol AND ended.date IS NOT DISTINCT FROM version.date
