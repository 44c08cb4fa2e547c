-- Prices of an entity with dividends and splits taken into account: only ratios within an entity mean anything.
-- volume in shares as reported; dollar_volume in dollars of the day. A day without a trade, or whose close has not moved
-- for five sessions, is not tradable, nor is the day of a suspected split.
CREATE OR REPLACE VIEW adjusted_prices AS
SELECT entity, date, open * factor AS open, high * factor AS high, low * factor AS low, close * factor AS close,
    volume::DOUBLE AS volume, close * volume AS dollar_volume,
    coalesce(volume > 0, true) AND NOT coalesce(marked, false) AS tradable
FROM (
    SELECT entity, prices.*, CASE WHEN adjusted THEN adj_close / prices.close ELSE 1 END AS factor, marked
    FROM prices
    JOIN entities ON entities.symbol = prices.symbol AND prices.date BETWEEN first_date AND last_date
    LEFT JOIN (
        SELECT symbol, date, true AS marked FROM stale_prices
        UNION
        SELECT symbol, date, true FROM corporate_actions WHERE action = 'suspected_split'
    ) AS marks ON marks.symbol = prices.symbol AND marks.date = prices.date
)
WHERE factor IS NOT NULL
