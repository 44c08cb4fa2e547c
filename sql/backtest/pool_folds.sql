-- The test blocks of a plan's folds, one after the other, as if they were one: first the returns, of strategies that were tested on
-- every fold, then the decisions.
INSERT INTO main.backtest_returns BY NAME
SELECT $plan AS checkpoint, strategy, 'test' AS block, date, gross_return, net_return, cost, turnover,
    exp(sum(ln(1 + net_return)) OVER (PARTITION BY strategy ORDER BY date)) AS wealth, hedge, data_version, $setup AS setup
FROM main.backtest_returns JOIN (
    SELECT checkpoint, fold FROM main.walk_forward_folds WHERE plan = $plan
) AS folds USING (checkpoint)
WHERE block = 'test'
QUALIFY count(DISTINCT fold) OVER (PARTITION BY strategy) = (SELECT count(*) FROM main.walk_forward_folds WHERE plan = $plan);

INSERT INTO main.backtest_decisions BY NAME
SELECT $plan AS checkpoint, strategy, 'test' AS block, date, entity, weight, signal, held, hedge, data_version, $setup AS setup
FROM main.backtest_decisions
WHERE checkpoint IN (SELECT checkpoint FROM main.walk_forward_folds WHERE plan = $plan) AND block = 'test'
    AND strategy IN (SELECT strategy FROM main.backtest_returns WHERE checkpoint = $plan)
