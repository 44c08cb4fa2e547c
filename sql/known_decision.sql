-- Whether this very decision is stored.
SELECT count(*) > 0
FROM main.decisions
WHERE date = $date::DATE AND checkpoint = $checkpoint AND planner = $planner AND data_version = $data_version
