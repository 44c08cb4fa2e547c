-- Brings the digests of the newest revision up to date from the rows that came and went:
-- XOR and sum need no rescan.
CREATE OR REPLACE TEMPORARY TABLE moved_digests AS
SELECT symbol, year, sum(n)::BIGINT AS n, bit_xor(folded) AS folded, sum(total)::HUGEINT AS total
FROM (
    SELECT symbol, year, n, folded, total FROM ({incoming})
    UNION ALL
    SELECT symbol, year, -n, folded, -total FROM ({outgoing})
    UNION ALL
    SELECT symbol, year, n, folded, total FROM price_digests AS old
    WHERE feed_id = {feed_id} AND EXISTS (FROM changed_keys AS key WHERE {same_year})
)
GROUP BY ALL;

DELETE FROM price_digests AS old
WHERE feed_id = {feed_id} AND EXISTS (FROM changed_keys AS key WHERE {same_year});

INSERT INTO price_digests SELECT {feed_id}, symbol, year, n, folded, total FROM moved_digests WHERE n > 0
