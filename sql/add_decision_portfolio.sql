INSERT INTO main.decision_portfolios
    (date, checkpoint, planner, data_version, feed, book, previous_date, wealth, peak, cash, hedge_held, state,
    made_afterwards)
VALUES
    ($date::DATE, $checkpoint, $planner, $data_version, $feed, $book, $previous_date::DATE, $wealth, $peak, $cash,
    $hedge_held, $state, $made_afterwards)
