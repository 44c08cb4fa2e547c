-- The sessions of a revision in numbers. missing_sessions: of the clock. uneven_sessions: more than a tenth off the median of
-- the 20 before; not asked where symbols trade on different days.
WITH kept AS (
    SELECT date, n, came FROM session_counts
    WHERE feed_id = {feed_id} AND n > 0
        AND date NOT IN (SELECT date FROM dropped_sessions WHERE feed_id = {feed_id} AND revision = {revision})
),
compared AS (
    SELECT came AS n, median(came) OVER (ORDER BY date ROWS BETWEEN 20 PRECEDING AND 1 PRECEDING) AS usual FROM kept
)
SELECT sum(n) AS sound_rows, min(date) AS first_date, max(date) AS last_date,
    (
        SELECT count(*) FROM calendar_sessions
        WHERE calendar = '{calendar}' AND date BETWEEN min(kept.date) AND max(kept.date) AND date NOT IN (SELECT date FROM kept)
    ) AS missing_sessions,
    (SELECT count(*) FROM compared WHERE NOT {several} AND n NOT BETWEEN 0.9 * usual AND 1.1 * usual) AS uneven_sessions
FROM kept
