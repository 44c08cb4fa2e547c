-- The planner of a checkpoint with the best Sharpe ratio, net of costs, on the validation block.
SELECT strategy
FROM main.backtest_returns
WHERE checkpoint = $checkpoint AND data_version = $data_version AND block = 'validation'
    AND NOT list_contains($rivals, strategy) AND strategy NOT LIKE '%:%'
GROUP BY strategy
ORDER BY avg(net_return) / nullif(stddev_samp(net_return), 0) DESC NULLS LAST, strategy
LIMIT 1
