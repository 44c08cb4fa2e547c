-- A revision in numbers. Of the rows that it appended: how many broke each rule, how many rules that nobody has accepted (refused),
-- which columns hold anything. Of the sessions: sound rows, sessions of the clock without any, and sessions that are more than a
-- tenth off the median of the 20 before (not asked where symbols trade on different days).
WITH appended AS (
    SELECT count(*)::DOUBLE AS new_rows, count(DISTINCT symbol)::DOUBLE AS symbols, {rule_counts},
        count(*) FILTER (WHERE broken & {refusing} <> 0)::DOUBLE AS refused_rows,
        list_filter([{columns}], lambda x: x IS NOT NULL) AS columns
    FROM price_history WHERE valid_from = {revision}
),
counted AS (
    SELECT date, count(*) AS came, count(*) FILTER (WHERE broken & {hard} = 0) AS n FROM price_history
    WHERE feed_id = {feed_id} AND valid_to IS NULL AND broken & {unplaced} = 0 GROUP BY date HAVING n > 0
),
compared AS (
    SELECT *, median(came) OVER (ORDER BY date ROWS BETWEEN 20 PRECEDING AND 1 PRECEDING) AS usual FROM counted
)
SELECT appended.*, sessions.* FROM appended, (
    SELECT sum(n) AS sound_rows, min(date) AS first_date, max(date) AS last_date,
        count(*) FILTER (WHERE NOT {several} AND came NOT BETWEEN 0.9 * usual AND 1.1 * usual) AS uneven_sessions,
        (
            SELECT count(*) FROM calendar_sessions AS calendar WHERE calendar = '{calendar}'
            AND calendar.date BETWEEN (SELECT min(date) FROM counted) AND (SELECT max(date) FROM counted)
            AND calendar.date NOT IN (SELECT date FROM counted)
        ) AS missing_sessions
    FROM compared
) AS sessions
