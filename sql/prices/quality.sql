-- How often each rule was broken in the active view, and examples. A drift is a month whose population stability index against the
-- twelve before it is too large; half a row is added to each bin, so that an empty one is no infinity.
WITH broken_rows AS (SELECT symbol, date, broken FROM seen_prices WHERE broken <> 0),
bins AS (
    SELECT quantity, month, bin, coalesce(n, 0) AS n,
        coalesce(sum(n) OVER (PARTITION BY quantity, bin ORDER BY month ROWS BETWEEN 12 PRECEDING AND 1 PRECEDING), 0) AS before
    FROM (SELECT DISTINCT quantity, month FROM price_histograms)
    JOIN (SELECT DISTINCT quantity, bin FROM price_histograms) USING (quantity)
    LEFT JOIN price_histograms USING (quantity, month, bin)
),
drifts AS (
    SELECT quantity, month, sum((share - share_before) * ln(share / share_before)) AS psi
    FROM (
        SELECT *, (n + 0.5) / sum(n + 0.5) OVER one AS share, (before + 0.5) / sum(before + 0.5) OVER one AS share_before,
            least(sum(n) OVER one, sum(before) OVER one) AS rows
        FROM bins WINDOW one AS (PARTITION BY quantity, month)
    )
    WHERE rows >= {drift_rows} GROUP BY quantity, month HAVING psi > {most_psi}
),
found AS (
    SELECT rule, coalesce(symbol, '?') || ' ' || date::VARCHAR AS example, date
    FROM broken_rows JOIN (VALUES {bits}) AS bits (rule, bit) ON broken & bit <> 0
    UNION ALL
    SELECT action, symbol || ' ' || date::VARCHAR, date FROM corporate_actions
    WHERE action IN ('suspected_split', 'unexplained_jump', 'extreme_move', 'price_step')
    UNION ALL
    SELECT 'large_return', symbol || ' ' || date::VARCHAR, date FROM price_events
    WHERE return_ratio NOT BETWEEN 0.5 AND 1.5 AND gap <= {long_gap}
    UNION ALL
    SELECT 'stale_close', symbol || ' ' || date::VARCHAR, date FROM price_events WHERE stale
    UNION ALL
    SELECT 'busy_factor', symbol || ' ' || max(date)::VARCHAR, max(date) FROM price_events
    WHERE abs(ln(factor_ratio)) > {factor_step} GROUP BY symbol, year(date) HAVING count(*) > 14
    UNION ALL
    SELECT 'sparse_ohlc', symbol || ' ' || min(date)::VARCHAR, min(date)
    FROM broken_rows JOIN (SELECT symbol, sum(observations) AS days FROM entities GROUP BY symbol) USING (symbol)
    WHERE broken & {missing_ohlc} <> 0 GROUP BY symbol HAVING count(*) > 0.01 * any_value(days)
    UNION ALL
    SELECT replace(ended_because, ' ', '_'), entity || ' ' || last_date::VARCHAR, last_date FROM entities
    WHERE ended_because IN ('delisted', 'ticker reused')
    UNION ALL
    SELECT quantity || '_drift', printf('PSI %.2f %s', psi, month::VARCHAR), month FROM drifts
)
SELECT rule, count(*) AS n, min_by(coalesce(example, 'a row without a day'), (date, example), 3) AS examples
FROM found GROUP BY rule ORDER BY n DESC, rule
