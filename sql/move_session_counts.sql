-- Brings the counts of rows by day up to date from the rows that came and went.
CREATE OR REPLACE TEMPORARY TABLE moved_counts AS
SELECT date, sum(CASE WHEN broken & {hard} = 0 THEN sign ELSE 0 END)::BIGINT AS n, sum(sign)::BIGINT AS came
FROM (
    SELECT date, broken, 1 AS sign FROM raw_price_versions WHERE first_revision = {revision}
    UNION ALL
    SELECT date, broken, -1 FROM ({outgoing})
)
WHERE broken & {unplaced} = 0
GROUP BY date;

INSERT INTO moved_counts SELECT date, n, came FROM session_counts WHERE feed_id = {feed_id} AND date IN (SELECT date FROM moved_counts);

DELETE FROM session_counts WHERE feed_id = {feed_id} AND date IN (SELECT date FROM moved_counts);

INSERT INTO session_counts SELECT {feed_id}, date, sum(n), sum(came) FROM moved_counts GROUP BY date HAVING sum(came) > 0 ORDER BY date
