-- Rows of a feed with this content as its source gave them, for an audit: some symbols, drawn by a hash, over the last sessions.
-- Without the ticks that later rows have put into quarantine (factor_step 512, impossible_move 1024): they are cleaned with up to
-- five rows of hindsight, which docs/operate.md says, and no audit needs to find it again.
WITH shown AS (
    SELECT feed, max(revision) AS revision
    FROM main.revisions JOIN main.feeds USING (feed_id)
    WHERE feed = $feed AND data_version = $data_version
    GROUP BY feed
), rows AS (
    SELECT symbol, date, open, high, low, close, volume, adj_close
    FROM main.raw_prices
    JOIN shown USING (feed)
    WHERE valid_from <= shown.revision AND (valid_to IS NULL OR valid_to > shown.revision) AND symbol IS NOT NULL AND date IS NOT NULL
        AND broken & 1536 = 0
), drawn AS (
    SELECT DISTINCT symbol FROM rows ORDER BY md5(symbol || $seed) LIMIT $symbols
), recent AS (
    SELECT min(date) AS date FROM (SELECT DISTINCT date FROM rows ORDER BY date DESC LIMIT $sessions)
)
SELECT symbol, date::VARCHAR AS date, open, high, low, close, volume, adj_close
FROM rows
WHERE symbol IN (FROM drawn) AND date >= (SELECT date FROM recent)
ORDER BY symbol, date
