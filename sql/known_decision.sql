-- Whether this very decision is stored; the champion's book has one a date.
SELECT count(*) > 0
FROM main.decision_portfolios
WHERE date = $date::DATE AND feed = $feed AND book = $book
    AND (
        book = 'champion'
        OR (checkpoint = $checkpoint AND planner = $planner AND data_version = $data_version)
    )
