-- The decisions of a plan's folds under the plan's own name.
INSERT INTO main.backtest_decisions BY NAME
SELECT $plan AS checkpoint, strategy, 'test' AS block, date, entity, weight, signal, held, hedge,
    decisions.data_version, $court AS court
FROM main.backtest_decisions AS decisions
JOIN main.walk_forward_folds AS folds USING (checkpoint)
WHERE folds.plan = $plan AND block = 'test'
    AND strategy IN (SELECT DISTINCT strategy FROM main.backtest_returns WHERE checkpoint = $plan)
