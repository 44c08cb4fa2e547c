-- What each year of the active view hashes to: from the ledger of the feed's newest revision if that is shown, with the days
-- that are dropped whole.
SELECT year, to_hex(bit_xor(hash(symbol, n, folded, total))) || '-' || (
    SELECT coalesce(to_hex(bit_xor(hash(date, rule))), '0') FROM dropped_sessions
    WHERE feed_id = {feed_id} AND revision = {revision} AND year(date) = digests.year
) AS digest
FROM price_digests AS digests WHERE feed_id = {feed_id} AND year IS NOT NULL
GROUP BY year ORDER BY year
