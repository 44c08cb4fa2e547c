-- What was held, by decision and entity, in one order.
SELECT block, strategy, date, entity, weight, signal, held, hedge
FROM main.backtest_decisions
WHERE checkpoint = $checkpoint AND data_version = $data_version
ORDER BY block, strategy, date, entity
