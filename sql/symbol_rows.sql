-- How many rows each well-formed symbol has in the newest revision of a feed.
SELECT symbol, sum(n)::BIGINT FROM price_digests
WHERE feed_id = {feed_id} AND regexp_full_match(symbol, '[A-Z0-9.^=-]{{1,12}}')
GROUP BY symbol ORDER BY symbol
