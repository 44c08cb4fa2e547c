-- The newest decision of a book up to a date, with the portfolio that it started from.
SELECT date, checkpoint, planner, data_version, wealth, peak, cash, hedge_held, state, coalesce(made_afterwards, false)
FROM main.decision_portfolios
WHERE feed = $feed AND book = $book AND date <= $date::DATE
ORDER BY date DESC, created_at DESC, rowid DESC
LIMIT 1
