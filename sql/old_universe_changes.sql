-- How many rows of before {recent} changed in what decides about the universe: the close, the volume, whether there is a
-- row, and whether it has an adjusted close. Also how many symbols have their first adjusted close, which makes the rows
-- without one unknown.
SELECT (
    SELECT count(*) FROM (
        SELECT symbol, date FROM changed_prices WHERE date < DATE '{recent}'
        GROUP BY symbol, date
        HAVING count(*) <> 2 OR NOT bool_or(came) OR bool_and(came)
            OR min(close) <> max(close) OR min(volume) IS DISTINCT FROM max(volume) OR count(volume) = 1
            OR min(priced) IS DISTINCT FROM max(priced) OR count(priced) = 1
    )
) + (
    SELECT count(DISTINCT symbol) FROM changed_prices JOIN entities USING (symbol) WHERE came AND priced AND NOT adjusted
)
