-- Eligible at the close of a date: traded that day, with enough history, and where the source has volumes, a close and a
-- median dollar volume (more than half the days reach it) that are high enough. Sums are of whole dollars, hence exact:
-- they do not depend on where a history starts. The block's contenders meet the best of the blocks before, whose last at a
-- date is the least that counts there.
CREATE OR REPLACE TEMPORARY TABLE contenders AS
WITH judged AS (
    SELECT adjusted.entity, date, tradable, dollar_volume / nullif(volume, 0) AS price,
        row_number() OVER history + CASE WHEN first_date < block_start THEN rows_before ELSE 0 END AS age,
        sum(TRY_CAST(dollar_volume AS BIGINT)) OVER recent AS traded,
        count(*) FILTER (WHERE dollar_volume >= {min_dollar_volume}) OVER recent AS liquid_days
    FROM ({adjusted}) AS adjusted
    JOIN (
        SELECT entity, first_date, rows_before, block_start
        FROM entities JOIN block_symbols USING (symbol)
        JOIN (SELECT symbol, min(date) AS block_start FROM block_prices GROUP BY symbol) USING (symbol)
    ) AS lives ON lives.entity = adjusted.entity
    WINDOW history AS (PARTITION BY adjusted.entity ORDER BY date),
        recent AS (PARTITION BY adjusted.entity ORDER BY date ROWS {window} - 1 PRECEDING)
),
least_traded AS (
    SELECT date, min(traded) AS least FROM best_contenders GROUP BY date HAVING count(traded) >= {size}
),
met AS (
    SELECT date, entity, traded, age FROM judged LEFT JOIN least_traded USING (date)
    WHERE (least IS NULL OR traded >= least) AND date >= DATE '{since}' AND tradable AND age >= {min_history}
        AND (traded IS NULL OR (price >= {min_price} AND liquid_days > {window} / 2.0))
    UNION ALL
    FROM best_contenders
)
FROM met
QUALIFY row_number() OVER (PARTITION BY date ORDER BY traded DESC NULLS LAST, age DESC, entity) <= {size};

ALTER TABLE best_contenders RENAME TO worse_contenders;
ALTER TABLE contenders RENAME TO best_contenders;
DROP TABLE worse_contenders
