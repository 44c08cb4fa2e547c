-- Brings the counts of sound rows up to date from the rows that came and went.
CREATE OR REPLACE TEMPORARY TABLE moved_counts AS
SELECT date, sum(n)::BIGINT AS n
FROM (
    SELECT date, 1 AS n FROM raw_price_versions WHERE first_revision = {revision} AND broken & {hard} = 0
    UNION ALL
    SELECT date, -1 FROM ({outgoing}) WHERE broken & {hard} = 0
)
GROUP BY date;

INSERT INTO moved_counts SELECT date, n FROM session_counts WHERE feed_id = {feed_id} AND date IN (SELECT date FROM moved_counts);

DELETE FROM session_counts WHERE feed_id = {feed_id} AND date IN (SELECT date FROM moved_counts);

INSERT INTO session_counts SELECT {feed_id}, date, sum(n) FROM moved_counts GROUP BY date HAVING sum(n) > 0 ORDER BY date
