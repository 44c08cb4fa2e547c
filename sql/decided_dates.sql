-- The dates from $first to $last on which the champion's book has a decision already.
SELECT DISTINCT date
FROM main.decision_portfolios
WHERE feed = $feed AND book = 'champion' AND date BETWEEN $first::DATE AND $last::DATE
