-- The days from a date on at which a dividend or a split of an entity took effect, as places in the panel.
SELECT DISTINCT panel_index.asset, actions.date
FROM main.corporate_actions AS actions JOIN temp.panel_index AS panel_index USING (symbol)
WHERE actions.action IN ('dividend', 'split') AND actions.date >= $since
