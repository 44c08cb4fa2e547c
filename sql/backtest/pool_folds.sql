-- The test blocks of a plan's folds, one after the other, as if they were one: first the returns, then the decisions.
INSERT INTO main.backtest_returns BY NAME
SELECT
    $plan AS checkpoint,
    strategy,
    'test' AS block,
    date,
    gross_return,
    net_return,
    cost,
    turnover,
    exp(sum(ln(1 + net_return)) OVER (PARTITION BY strategy ORDER BY date)) AS wealth,
    hedge,
    returns.data_version,
    $setup AS setup
FROM main.backtest_returns AS returns
JOIN main.walk_forward_folds AS folds USING (checkpoint)
WHERE folds.plan = $plan AND block = 'test'
    AND strategy IN (
        -- those that were tested on every fold
        SELECT strategy
        FROM main.backtest_returns
        JOIN main.walk_forward_folds USING (checkpoint)
        WHERE plan = $plan AND block = 'test'
        GROUP BY strategy
        HAVING count(DISTINCT fold) = (SELECT count(*) FROM main.walk_forward_folds WHERE plan = $plan)
    );
INSERT INTO main.backtest_decisions BY NAME
SELECT $plan AS checkpoint, strategy, 'test' AS block, date, entity, weight, signal, held, hedge,
    decisions.data_version, $setup AS setup
FROM main.backtest_decisions AS decisions
JOIN main.walk_forward_folds AS folds USING (checkpoint)
WHERE folds.plan = $plan AND block = 'test'
    AND strategy IN (SELECT DISTINCT strategy FROM main.backtest_returns WHERE checkpoint = $plan)
