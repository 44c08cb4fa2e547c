-- Rows that are held, and that the delivery does not cover, are kept: those before the first and after the last day that it has
-- of their symbol, unless the adjustment of the rows beside them has changed, and those of symbols that it does not have.
DELETE FROM changed_keys AS key
WHERE withdrawn AND symbol IS NOT NULL AND date IS NOT NULL AND (
    symbol NOT IN (SELECT symbol FROM delivered_spans)
    OR EXISTS (
        FROM delivered_spans AS span WHERE span.symbol = key.symbol
        AND (key.date < first AND NOT first_moved OR key.date > last AND NOT last_moved)
    )
)
