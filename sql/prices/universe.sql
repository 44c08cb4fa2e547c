-- Eligible at the close of a date: traded that day, with enough history, and where the source has volumes, with a median
-- dollar volume that is high enough (more than half the days reach it). There is no filter by price: most sources divide past
-- closes by later splits, so that a low one would know of them; dollar volume stays the same. Sums are of whole dollars, hence
-- exact: they do not depend on where a history starts. The block's contenders meet the best of the blocks before, whose last
-- at a date is the least that counts there. Where the source has no volumes, a hash of the first returns decides between symbols of
-- the same age (rounded to a basis point, so that a later adjustment of all closes does not move it), never the name.
CREATE OR REPLACE TEMPORARY TABLE contenders AS
WITH tie_breaks AS (
    SELECT symbol, hash(list_transform(range(1, len(closes)), lambda place: round(1e4 * ln(closes[place + 1] / closes[place])))) AS tie_break
    FROM (SELECT symbol, arg_min(close, date, least(21, {min_history})) AS closes FROM block_prices WHERE NOT {has_volume} GROUP BY symbol)
),
judged AS (
    SELECT adjusted.entity, date, tradable, coalesce(tie_break, 0) AS tie_break, row_number() OVER history AS age,
        sum(TRY_CAST(dollar_volume AS BIGINT)) OVER recent AS traded,
        count(*) FILTER (WHERE dollar_volume >= {min_dollar_volume}) OVER recent AS liquid_days
    FROM ({adjusted}) AS adjusted JOIN entities USING (entity) LEFT JOIN tie_breaks USING (symbol)
    WINDOW history AS (PARTITION BY adjusted.entity ORDER BY date),
        recent AS (PARTITION BY adjusted.entity ORDER BY date ROWS {window} - 1 PRECEDING)
),
least_traded AS (
    SELECT date, min(traded) AS least FROM best_contenders GROUP BY date HAVING count(traded) >= {size}
),
met AS (
    SELECT date, entity, traded, age, tie_break FROM judged LEFT JOIN least_traded USING (date)
    WHERE (least IS NULL OR traded >= least) AND tradable AND age >= {min_history}
        AND (traded IS NULL OR liquid_days > {window} / 2.0)
    UNION ALL
    FROM best_contenders
)
FROM met
QUALIFY row_number() OVER (PARTITION BY date ORDER BY traded DESC NULLS LAST, age DESC, tie_break, entity) <= {size};

CREATE OR REPLACE TEMPORARY TABLE best_contenders AS FROM contenders
