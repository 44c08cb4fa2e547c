-- Results of whatever was ever tried on blocks of this kind, per day; NULL for what failed. Rivals were chosen beforehand.
SELECT daily_sharpe
FROM main.backtest_trials
WHERE block = $block AND NOT list_contains($rivals, strategy)
