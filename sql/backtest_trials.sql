-- One more trial, unless the very same walk was logged before.
INSERT INTO main.backtest_trials BY NAME
SELECT
    $court AS court,
    $checkpoint AS checkpoint,
    $strategy AS strategy,
    $block AS block,
    $data_version AS data_version,
    $n_days AS n_days,
    $created_at AS created_at,
    $start_date AS start_date,
    $end_date AS end_date
WHERE NOT EXISTS (FROM main.backtest_trials WHERE court = $court AND strategy = $strategy)
