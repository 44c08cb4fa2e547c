-- Net returns of whatever was ever tried and is still stored, on the sessions of a court.
SELECT date, checkpoint || '/' || strategy || '/' || block AS trial, net_return
FROM main.backtest_returns
WHERE NOT list_contains($rivals, strategy)
    AND date IN (FROM (SELECT date FROM main.backtest_returns WHERE court = $court))
ORDER BY trial, date
