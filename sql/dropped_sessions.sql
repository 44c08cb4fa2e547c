-- The sessions of a revision of which only a part has come, good or bad. The expectation is the median of the 20 sessions before; late
-- sessions are asked for of whole markets only, and nothing is where symbols trade on different days ({several}).
INSERT INTO dropped_sessions
WITH counted AS (
    SELECT date, came AS n FROM session_counts WHERE feed_id = {feed_id} AND NOT {several}
),
compared AS (
    SELECT date, n, median(n) OVER (ORDER BY date ROWS BETWEEN 20 PRECEDING AND 1 PRECEDING) AS usual,
        date = max(date) OVER () AS newest
    FROM counted
)
SELECT {feed_id}, {revision}, date, 'thin_session' FROM compared WHERE n < 0.2 * usual
UNION ALL
SELECT {feed_id}, {revision}, date, 'late_session' FROM compared
WHERE newest AND usual >= 50 AND n < 0.9 * usual AND n >= 0.2 * usual
