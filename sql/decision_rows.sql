-- The assets of one decision.
SELECT asset, weight, signal, position, coalesce(held, 0) AS held, hedge
FROM main.decisions
WHERE date = $date::DATE AND checkpoint = $checkpoint AND planner = $planner AND data_version = $data_version
ORDER BY asset
