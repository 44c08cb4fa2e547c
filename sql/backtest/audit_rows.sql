-- Rows of a feed with this content as its source gave them, for an audit: some symbols, drawn by a hash, over the last sessions.
-- Without the ticks that later rows have put into quarantine (factor_step 512, impossible_move 1024): they are cleaned with up to
-- five rows of hindsight, which docs/how-to/price-rules.md says, and no audit needs to find it again.
WITH rows AS (
    SELECT symbol, date, open, high, low, close, volume, adj_close
    FROM main.price_history AS history JOIN (
        SELECT feed_id, max(revision) AS revision FROM main.revisions JOIN main.feeds USING (feed_id)
        WHERE feed = $feed AND data_version = $data_version GROUP BY feed_id
    ) AS shown USING (feed_id)
    WHERE valid_from <= revision AND (valid_to IS NULL OR valid_to > revision) AND symbol IS NOT NULL AND date IS NOT NULL
        AND broken & 1536 = 0
)
SELECT * REPLACE (date::VARCHAR AS date) FROM rows
WHERE symbol IN (SELECT DISTINCT symbol FROM rows ORDER BY md5(symbol) LIMIT $symbols)
    AND date >= (SELECT min(date) FROM (SELECT DISTINCT date FROM rows ORDER BY date DESC LIMIT $sessions))
ORDER BY symbol, date
