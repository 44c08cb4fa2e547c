-- How many assets 1/N held at the last decision of the test block, how many were in the universe that day, and whether their source
-- has volumes. No row where the tables show other prices by now.
SELECT traded, (SELECT count(*) FROM main.universe WHERE universe.date = decided.date), list_contains(columns, 'volume')
FROM (
    SELECT date, data_version, count(*) AS traded FROM main.backtest_decisions
    WHERE checkpoint = $checkpoint AND strategy = 'equal_weight' AND block = 'test' AND weight > 0
    GROUP BY ALL ORDER BY date DESC LIMIT 1
) AS decided JOIN main.revisions USING (data_version) JOIN main.active_view USING (feed_id, revision)
