-- What was held at the end of each decision step of a court, in one order.
SELECT strategy, date, entity, held, hedge
FROM main.backtest_decisions
WHERE checkpoint = $checkpoint AND data_version = $data_version AND block = $block AND court = $court
ORDER BY strategy, date, entity
