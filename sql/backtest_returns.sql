-- The daily returns of every strategy that was judged beside a checkpoint on one version of the data, in one order.
SELECT block, strategy, date, gross_return, net_return, cost, turnover, wealth, hedge, court
FROM main.backtest_returns
WHERE checkpoint = $checkpoint AND data_version = $data_version
ORDER BY block, strategy, date
