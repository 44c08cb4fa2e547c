-- How the recent days of each symbol in symbol_days agree with each calendar in candidate_sessions: days that are no session, and
-- sessions without a row.
WITH spans AS (
    SELECT symbol, greatest(min(date), max(date) - {recent}) AS first, max(date) AS last FROM symbol_days GROUP BY symbol
),
recent AS (
    SELECT symbol, date FROM symbol_days JOIN spans USING (symbol) WHERE date >= first
),
counted AS (SELECT symbol, count(*) AS n FROM recent GROUP BY symbol),
hits AS (SELECT symbol, calendar, count(*) AS n FROM recent JOIN candidate_sessions USING (date) GROUP BY symbol, calendar),
expected AS (
    SELECT symbol, calendar, count(*) AS n
    FROM spans JOIN candidate_sessions ON date BETWEEN first AND last GROUP BY symbol, calendar
)
SELECT symbol, calendar, (counted.n - coalesce(hits.n, 0)) / counted.n AS outside, (expected.n - coalesce(hits.n, 0)) / counted.n AS missing
FROM counted JOIN expected USING (symbol) LEFT JOIN hits USING (symbol, calendar)
