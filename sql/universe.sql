-- Eligible at the close of a date: traded that day, with enough history, and where the source has volumes, with a median
-- dollar volume that is high enough (more than half the days reach it). There is no filter by price: most sources divide past
-- closes by later splits, so that a low one would know of them; dollar volume stays the same. Sums are of whole dollars, hence
-- exact: they do not depend on where a history starts. The block's contenders meet the best of the blocks before, whose last
-- at a date is the least that counts there. The name decides nothing while tie_breaks or dollar volumes differ.
CREATE OR REPLACE TEMPORARY TABLE contenders AS
WITH judged AS (
    SELECT adjusted.entity, date, tradable, tie_break,
        row_number() OVER history + CASE WHEN first_date < block_start THEN rows_before ELSE 0 END AS age,
        sum(TRY_CAST(dollar_volume AS BIGINT)) OVER recent AS traded,
        count(*) FILTER (WHERE dollar_volume >= {min_dollar_volume}) OVER recent AS liquid_days
    FROM ({adjusted}) AS adjusted
    JOIN (
        SELECT entity, first_date, rows_before, block_start, coalesce(tie_break, 0) AS tie_break
        FROM entities JOIN block_symbols USING (symbol) LEFT JOIN tie_breaks USING (symbol)
        JOIN (SELECT symbol, min(date) AS block_start FROM block_prices GROUP BY symbol) USING (symbol)
    ) AS lives ON lives.entity = adjusted.entity
    WINDOW history AS (PARTITION BY adjusted.entity ORDER BY date),
        recent AS (PARTITION BY adjusted.entity ORDER BY date ROWS {window} - 1 PRECEDING)
),
least_traded AS (
    SELECT date, min(traded) AS least FROM best_contenders GROUP BY date HAVING count(traded) >= {size}
),
met AS (
    SELECT date, entity, traded, age, tie_break FROM judged LEFT JOIN least_traded USING (date)
    WHERE (least IS NULL OR traded >= least) AND date >= DATE '{since}' AND tradable AND age >= {min_history}
        AND (traded IS NULL OR liquid_days > {window} / 2.0)
    UNION ALL
    FROM best_contenders
)
FROM met
QUALIFY row_number() OVER (PARTITION BY date ORDER BY traded DESC NULLS LAST, age DESC, tie_break, entity) <= {size};

ALTER TABLE best_contenders RENAME TO worse_contenders;
ALTER TABLE contenders RENAME TO best_contenders;
DROP TABLE worse_contenders
