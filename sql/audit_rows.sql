-- Rows of the active feed as its source gave them, for an audit: some symbols, drawn by a hash, over the last sessions.
WITH shown AS (
    SELECT feed, revision FROM main.active_view JOIN main.feeds USING (feed_id)
), rows AS (
    SELECT symbol, date, open, high, low, close, volume, adj_close
    FROM main.raw_prices
    JOIN shown USING (feed)
    WHERE shown.revision BETWEEN first_revision AND last_revision AND symbol IS NOT NULL AND date IS NOT NULL
), drawn AS (
    SELECT DISTINCT symbol FROM rows ORDER BY md5(symbol || $seed) LIMIT $symbols
), recent AS (
    SELECT min(date) AS date FROM (SELECT DISTINCT date FROM rows ORDER BY date DESC LIMIT $sessions)
)
SELECT symbol, date::VARCHAR AS date, open, high, low, close, volume, adj_close
FROM rows
WHERE symbol IN (FROM drawn) AND date >= (SELECT date FROM recent)
ORDER BY symbol, date
