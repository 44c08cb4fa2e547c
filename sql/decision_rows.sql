-- The assets of one decision.
SELECT asset, weight, signal, position, coalesce(held, 0) AS held, hedge, expected_return, expected_volatility
FROM main.decisions
WHERE date = $date::DATE AND checkpoint = $checkpoint AND planner = $planner AND data_version = $data_version
    AND book = $book
ORDER BY asset
