-- Eligible at the close of a date: traded that day, with enough history, and where the source has volumes, a close and a
-- median dollar volume (more than half the days reach it) that are high enough, among the first by dollar volume over the
-- window. Sums are of whole dollars, hence exact: they do not depend on where a history starts.
DELETE FROM universe;

INSERT INTO universe
WITH judged AS (
    SELECT entity, date, tradable, dollar_volume / nullif(volume, 0) AS price,
        row_number() OVER history AS age,
        sum(TRY_CAST(dollar_volume AS BIGINT)) OVER recent AS traded,
        count(*) FILTER (WHERE dollar_volume >= {min_dollar_volume}) OVER recent AS liquid_days
    FROM adjusted_prices
    WINDOW history AS (PARTITION BY entity ORDER BY date),
        recent AS (PARTITION BY entity ORDER BY date ROWS {window} - 1 PRECEDING)
)
SELECT date, entity FROM judged
WHERE tradable AND age >= {min_history}
    AND (traded IS NULL OR (price >= {min_price} AND liquid_days > {window} / 2.0))
QUALIFY row_number() OVER (PARTITION BY date ORDER BY traded DESC NULLS LAST, age DESC, entity) <= {size}
ORDER BY date, entity
