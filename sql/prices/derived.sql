-- What follows from the prices that are shown and from their events, corporate actions and entities (finjepa_model/features/adjust.py), made
-- whole in one transaction. A name in braces is an option of derive.py.

-- Rows with dividends and splits taken into account: only ratios within an entity mean anything. volume in shares as reported;
-- dollar_volume in dollars of the day. A day without a trade, or whose close is stale, is not tradable, nor is the day of a
-- suspected split, a price step or an extreme move.
CREATE OR REPLACE VIEW adjusted_prices AS
SELECT entity, date, open * factor AS open, high * factor AS high, low * factor AS low, close * factor AS close, volume,
    close * volume AS dollar_volume, coalesce(volume > 0, true) AND NOT coalesce(marked, false) AS tradable
FROM (
    SELECT *, CASE WHEN adjusted THEN adj_close / close ELSE 1 END AS factor
    FROM clocked_prices JOIN entities USING (symbol) LEFT JOIN (
        SELECT symbol, date, true AS marked FROM price_events WHERE stale UNION
        SELECT symbol, date, true FROM corporate_actions WHERE action IN ('suspected_split', 'price_step', 'extreme_move')
    ) AS marks USING (symbol, date)
    WHERE date BETWEEN first_date AND last_date
)
WHERE factor IS NOT NULL;

-- Eligible at the close of a date: traded that day, with enough history, and where the source has volumes, with a median
-- dollar volume that is high enough (more than half the days reach it). No filter by price: most sources divide past closes by later
-- splits, so that a low one would know of them. Sums are of whole dollars, hence exact: they do not depend on where a history starts.
-- The order is that of UniverseRule: equal dollar volumes, or none, go by symbol.
CREATE OR REPLACE TABLE universe AS
WITH judged AS (
    SELECT entity, symbol, date, tradable, row_number() OVER history AS age,
        sum(TRY_CAST(dollar_volume AS BIGINT)) OVER recent AS traded,
        count(*) FILTER (WHERE dollar_volume >= {min_dollar_volume}) OVER recent AS liquid_days
    FROM adjusted_prices JOIN entities USING (entity)
    WINDOW history AS (PARTITION BY entity ORDER BY date), recent AS (history ROWS {window} - 1 PRECEDING)
)
SELECT date, entity FROM judged
WHERE tradable AND age >= {min_history} AND (traded IS NULL OR liquid_days > {window} / 2.0)
QUALIFY row_number() OVER (PARTITION BY date ORDER BY traded DESC NULLS LAST, symbol) <= {size}
ORDER BY date, entity;

-- Returns of raw closes (a dividend that is paid later does not move them), in percent, and volumes, in half decades, by month.
CREATE OR REPLACE TABLE price_histograms AS
SELECT 'return' AS quantity, date_trunc('month', date)::DATE AS month, least(greatest(round(100 * log_return), -5), 5)::TINYINT AS bin, count(*) AS n
FROM (SELECT date, ln(close / lag(close) OVER (PARTITION BY symbol ORDER BY date)) AS log_return FROM clocked_prices)
WHERE log_return IS NOT NULL GROUP BY ALL
UNION ALL
SELECT 'volume', date_trunc('month', date)::DATE, greatest(floor(2 * log10(volume)), 0)::TINYINT, count(*)
FROM clocked_prices WHERE volume > 0 GROUP BY ALL
