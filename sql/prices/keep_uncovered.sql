-- Rows that the delivery does not cover are kept: those before the first and after the last day that it has of their symbol, unless the
-- prices beside them were adjusted again since (a ratio off 1 between old and new), and those of symbols that it does not have.
DELETE FROM changed_keys
WHERE withdrawn AND symbol IS NOT NULL AND date IS NOT NULL AND NOT EXISTS (
    FROM (SELECT symbol, min(date) AS first, max(date) AS last FROM ({delivered}) GROUP BY symbol) AS span
    LEFT JOIN (
        SELECT symbol, arg_min(ratio, date) AS first_ratio, arg_max(ratio, date) AS last_ratio FROM (
            SELECT symbol, date, coalesce(new.adj_close, new.close) / coalesce(old.adj_close, old.close) AS ratio
            FROM delivered_rows AS new JOIN held_rows AS old USING (symbol, date)
            WHERE (old.broken | new.broken) & ({firm} | {ticks}) = 0
        ) GROUP BY symbol
    ) AS scale USING (symbol)
    WHERE span.symbol = changed_keys.symbol AND CASE
        WHEN date < first THEN coalesce(abs(ln(first_ratio)) > 1e-4, false)
        WHEN date > last THEN coalesce(abs(ln(last_ratio)) > 1e-4, false)
        ELSE true END
)
