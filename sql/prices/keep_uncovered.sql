-- Rows that the delivery does not cover are kept: those before the first and after the last day that it has of their symbol, unless the
-- prices beside them were adjusted again since (a ratio off 1 between old and new), and those of symbols that it does not have.
CREATE OR REPLACE TEMPORARY TABLE delivered_spans AS
WITH delivered AS (
    SELECT symbol, min(date) AS first, max(date) AS last
    FROM ({delivered}) WHERE symbol IN (SELECT symbol FROM changed_keys WHERE withdrawn) GROUP BY symbol
),
twice AS (
    SELECT new.symbol, new.date, coalesce(new.adj_close, new.close) / coalesce(old.adj_close, old.close) AS ratio
    FROM delivered_rows AS new JOIN held_rows AS old ON old.symbol = new.symbol AND old.date = new.date
    WHERE (old.broken | new.broken) & ({firm} | {ticks}) = 0
),
scaled AS (SELECT symbol, arg_min(ratio, date) AS first_ratio, arg_max(ratio, date) AS last_ratio FROM twice GROUP BY symbol)
SELECT symbol, first, last, coalesce(abs(ln(first_ratio)) > 1e-4, false) AS first_moved,
    coalesce(abs(ln(last_ratio)) > 1e-4, false) AS last_moved
FROM delivered LEFT JOIN scaled USING (symbol);

DELETE FROM changed_keys AS key
WHERE withdrawn AND symbol IS NOT NULL AND date IS NOT NULL AND (
    symbol NOT IN (SELECT symbol FROM delivered_spans)
    OR EXISTS (
        FROM delivered_spans AS span WHERE span.symbol = key.symbol
        AND (key.date < first AND NOT first_moved OR key.date > last AND NOT last_moved)
    )
)
