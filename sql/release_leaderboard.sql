-- What a model card shows of a checkpoint's newest leaderboard.
SELECT strategy, block, start_date, end_date, sharpe, sharpe_low, sharpe_high, annual_return, annual_volatility, max_drawdown,
    annual_turnover, excess_sharpe, excess_low, excess_high, n_days, data_version,
    dsr, break_even_bps
FROM main.leaderboard
WHERE checkpoint = $checkpoint AND data_version = (
    SELECT data_version FROM main.leaderboard WHERE checkpoint = $checkpoint ORDER BY created_at DESC LIMIT 1
)
ORDER BY block, sharpe DESC NULLS LAST, strategy
