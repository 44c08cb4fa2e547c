-- Who was in the universe from a date on, as places in the panel.
SELECT panel_index.asset, date
FROM main.universe JOIN temp.panel_index AS panel_index USING (entity)
WHERE date >= $since
