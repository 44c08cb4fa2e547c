-- How many symbols had closes of their last 30 rows restated by more than 1 %, and three of them. A new dividend or split scales the
-- adjusted closes of a whole run of days: what counts is the change relative to that. Rows changed here and there are not scaled.
WITH twice AS (
    SELECT old.symbol, old.date, coalesce(new.adj_close, new.close) / coalesce(old.adj_close, old.close) AS ratio
    FROM (FROM price_history WHERE feed_id = {feed_id} AND valid_to = {revision}) AS old
    JOIN price_history AS new ON new.symbol = old.symbol AND new.date = old.date
    WHERE new.valid_from = {revision} AND (old.broken | new.broken) & ({firm} | {ticks}) = 0
    QUALIFY row_number() OVER (PARTITION BY old.symbol ORDER BY old.date DESC) <= 30
),
moves AS (
    SELECT symbol, max(abs(ratio / scale - 1)) AS largest FROM twice JOIN (
        SELECT symbol, CASE WHEN count(*) >= 3 AND count(*) > 0.6 * (max(date) - min(date) + 1) THEN median(ratio) ELSE 1 END AS scale
        FROM twice GROUP BY symbol
    ) USING (symbol) GROUP BY symbol
)
SELECT count(*)::INTEGER, coalesce(min(symbol, 3), []) FROM moves WHERE largest > 0.01
