-- Rows of `prices` with dividends and splits taken into account: only ratios within an entity mean anything. volume in
-- shares as reported; dollar_volume in dollars of the day. A day without a trade, or whose close has not moved for five
-- sessions, is not tradable, nor is the day of a suspected split, a price step or an extreme move.
SELECT entity, date, open * factor AS open, high * factor AS high, low * factor AS low, close * factor AS close,
    volume::DOUBLE AS volume, close * volume AS dollar_volume,
    coalesce(volume > 0, true) AND NOT coalesce(marked, false) AS tradable
FROM (
    SELECT entity, rows.*, CASE WHEN adjusted THEN adj_close / rows.close ELSE 1 END AS factor, marked
    FROM {prices} AS rows
    JOIN entities ON entities.symbol = rows.symbol AND rows.date BETWEEN first_date AND last_date
    LEFT JOIN (
        SELECT symbol, date, true AS marked FROM stale_prices
        UNION
        SELECT symbol, date, true FROM corporate_actions WHERE action IN ('suspected_split', 'price_step', 'extreme_move')
    ) AS marks ON marks.symbol = rows.symbol AND marks.date = rows.date
)
WHERE factor IS NOT NULL
