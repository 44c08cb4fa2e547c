-- Daily net returns of two checkpoints on the validation sessions from $first to $last that both were backtested on. The
-- champion's are those of the same data, or else the newest that are stored.
SELECT champion.net_return AS champion, challenger.net_return AS challenger
FROM main.backtest_returns AS champion JOIN main.backtest_returns AS challenger USING (date)
WHERE champion.checkpoint = $champion AND champion.strategy = $champion_strategy AND champion.block = 'validation'
    AND champion.data_version = (
        SELECT data_version FROM main.backtest_trials
        WHERE checkpoint = $champion AND strategy = $champion_strategy AND block = 'validation'
        ORDER BY data_version = $data_version DESC, created_at DESC LIMIT 1
    )
    AND challenger.checkpoint = $challenger AND challenger.strategy = $challenger_strategy
    AND challenger.block = 'validation' AND challenger.data_version = $data_version
    AND date BETWEEN CAST($first AS DATE) AND CAST($last AS DATE)
ORDER BY date
