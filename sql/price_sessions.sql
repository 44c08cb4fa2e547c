DELETE FROM price_sessions;

INSERT INTO price_sessions
SELECT date, row_number() OVER (ORDER BY date), n FROM (SELECT date, count(*) AS n FROM prices GROUP BY date) ORDER BY date
