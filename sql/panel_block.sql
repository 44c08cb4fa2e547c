-- Observations of a run of entities from a date on, with their place in the universe and whether a dividend or a split
-- took effect that day. {columns} are the columns that the channels need. The run's bounds are repeated for the universe:
-- a join does not pass them on, and the whole of it would be read for each run.
SELECT
    panel_index.asset,
    prices.date,
    prices.tradable,
    universe.entity IS NOT NULL AS eligible,
    events.symbol IS NOT NULL AS event,
    {columns}
FROM main.adjusted_prices AS prices
JOIN temp.panel_index AS panel_index ON panel_index.entity = prices.entity
LEFT JOIN (
    SELECT entity, date FROM main.universe WHERE entity BETWEEN $first AND $last AND date >= $since
) AS universe ON universe.entity = prices.entity AND universe.date = prices.date
LEFT JOIN (
    SELECT DISTINCT symbol, date FROM main.corporate_actions WHERE action IN ('dividend', 'split') AND date >= $since
) AS events ON events.symbol = split_part(prices.entity, '#', 1) AND events.date = prices.date
WHERE prices.entity BETWEEN $first AND $last AND prices.date >= $since
ORDER BY panel_index.asset, prices.date
