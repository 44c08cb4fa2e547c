-- A revision in numbers. Of the rows that it appended: how many broke each rule, how many rules that nobody has accepted (refused).
-- Of the feed: which columns hold anything; sound rows, sessions of the clock without any, and sessions that are more than a
-- tenth off the median of the 20 before (not asked where symbols trade on different days).
WITH appended AS (
    SELECT count(*)::DOUBLE AS new_rows, count(DISTINCT symbol)::DOUBLE AS symbols, {rule_counts},
        count(*) FILTER (WHERE broken & {refusing} <> 0)::DOUBLE AS refused_rows
    FROM price_history WHERE valid_from = {revision}
),
valid AS (FROM price_history WHERE feed_id = {feed_id} AND valid_to IS NULL),
sessions AS (
    SELECT date, count(*) AS came, count(*) FILTER (WHERE broken & {hard} = 0) AS n,
        median(count(*)) OVER (ORDER BY date ROWS BETWEEN 20 PRECEDING AND 1 PRECEDING) AS usual
    FROM valid WHERE broken & {unplaced} = 0 GROUP BY date HAVING n > 0
)
SELECT appended.*, held.*, counted.*, (
    SELECT count(*) FROM calendar_sessions WHERE calendar = '{calendar}' AND date BETWEEN first_date AND last_date
    AND date NOT IN (SELECT date FROM sessions)
) AS missing_sessions
FROM appended, (SELECT list_filter([{columns}], lambda x: x IS NOT NULL) AS columns FROM valid) AS held, (
    SELECT sum(n) AS sound_rows, min(date) AS first_date, max(date) AS last_date,
        count(*) FILTER (WHERE NOT {several} AND came NOT BETWEEN 0.9 * usual AND 1.1 * usual) AS uneven_sessions
    FROM sessions
) AS counted
