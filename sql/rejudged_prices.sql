-- The rows of earlier revisions whose judgement the rows after them have changed: `broken` as it is now. Of a key all versions
-- come, since a key ends as a whole. Only rows that have enough rows before them here are judged.
CREATE OR REPLACE TEMPORARY TABLE rejudged_prices AS
WITH judged AS (
    SELECT symbol, date, broken, coalesce(tick.bit, 0) AS bit
    FROM earlier_price_versions AS row LEFT JOIN tick_rows AS tick USING (symbol, date)
    WHERE broken & {other_hard} = 0 AND date >= (
        SELECT min(date) - 30 FROM raw_price_versions AS new WHERE first_revision = {revision} AND new.symbol = row.symbol
    )
),
moved AS (SELECT symbol, date, bit FROM judged WHERE broken & {ticks} <> bit)
SELECT row.* REPLACE (
    (CASE WHEN row.broken & {other_hard} = 0 THEN (row.broken & ~{ticks}::UINTEGER) | moved.bit ELSE row.broken END)::UINTEGER AS broken
), row.broken AS broken_before
FROM ({held}) AS row JOIN moved USING (symbol, date)
WHERE first_revision < {revision}
