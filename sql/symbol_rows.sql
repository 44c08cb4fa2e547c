-- How many rows each symbol has in the newest revision of a feed.
SELECT symbol, sum(n)::BIGINT FROM price_digests
WHERE feed_id = {feed_id} AND symbol IS NOT NULL
GROUP BY symbol ORDER BY symbol
