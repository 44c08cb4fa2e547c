-- Observations of a run of entities from a date on. {columns} are those that hold anything. Not sorted: the reader looks
-- whether they come in order, as they are stored, and sorts them if not.
SELECT panel_index.asset, prices.date, prices.tradable, {columns}
FROM main.adjusted_prices AS prices JOIN temp.panel_index AS panel_index USING (entity)
WHERE prices.entity BETWEEN $first AND $last AND prices.date >= $since
