-- The dates on which a book has a decision.
SELECT DISTINCT date
FROM main.decision_portfolios
WHERE feed = $feed AND book = $book
ORDER BY date
