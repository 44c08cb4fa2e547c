-- The observations of a run of entities, with their place in the panel, membership of the universe and events of the day.
SELECT asset, prices.date, open::DOUBLE AS open, high::DOUBLE AS high, low::DOUBLE AS low, close::DOUBLE AS close,
    volume::DOUBLE AS volume, dollar_volume::DOUBLE AS dollar_volume, tradable,
    members.date IS NOT NULL AS eligible, actions.date IS NOT NULL AS event
FROM main.adjusted_prices AS prices
JOIN temp.panel_assets AS places USING (entity)
LEFT JOIN (FROM main.universe WHERE entity BETWEEN $first AND $last) AS members -- bounded here too, or all of it is read
    ON members.entity = prices.entity AND members.date = prices.date
LEFT JOIN (SELECT DISTINCT symbol, date FROM main.corporate_actions WHERE action IN ('dividend', 'split')) AS actions
    ON actions.symbol = places.symbol AND actions.date = prices.date
WHERE prices.entity BETWEEN $first AND $last
