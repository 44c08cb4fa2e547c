-- The replays of a court.
SELECT strategy, replay, sharpe, annual_return
FROM main.backtest_replays
WHERE checkpoint = $checkpoint AND data_version = $data_version AND block = $block AND court = $court
ORDER BY strategy, replay
