-- How often each rule was broken in the active view, and examples.
WITH broken_rows AS (
    SELECT symbol, date, broken FROM seen_prices WHERE broken <> 0
),
-- Population stability index of each month against the twelve before it, where both have a thousand rows or more; half a row
-- is added to each bin, so that an empty one is no infinity.
months AS (
    SELECT quantity, date_trunc('month', date) AS month, bin, sum(n) AS n FROM price_histograms GROUP BY ALL
),
compared AS (
    SELECT this.quantity, this.month, bins.bin, coalesce(any_value(cell.n), 0) AS n, coalesce(sum(past.n), 0) AS n_before
    FROM (SELECT DISTINCT quantity, month FROM months) AS this
    JOIN (SELECT DISTINCT quantity, bin FROM months) AS bins USING (quantity)
    LEFT JOIN months AS cell ON cell.quantity = this.quantity AND cell.month = this.month AND cell.bin = bins.bin
    LEFT JOIN months AS past ON past.quantity = this.quantity AND past.bin = bins.bin
        AND past.month >= this.month - INTERVAL 12 MONTH AND past.month < this.month
    GROUP BY ALL
),
shares AS (
    SELECT quantity, month, sum(n) OVER whole AS total, sum(n_before) OVER whole AS total_before,
        (n + 0.5) / (total + 0.5 * count(*) OVER whole) AS share,
        (n_before + 0.5) / (total_before + 0.5 * count(*) OVER whole) AS share_before
    FROM compared
    WINDOW whole AS (PARTITION BY quantity, month)
),
drift AS (
    SELECT quantity, month, sum((share - share_before) * ln(share / share_before)) AS psi
    FROM shares WHERE total >= 1000 AND total_before >= 1000
    GROUP BY quantity, month
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
    SELECT 'stale_close', symbol || ' ' || date::VARCHAR, date FROM stale_prices
    UNION ALL
    SELECT 'busy_factor', symbol || ' ' || max(date)::VARCHAR, max(date) FROM price_events
    WHERE abs(ln(factor_ratio)) > {factor_step} GROUP BY symbol, year(date) HAVING count(*) > 14
    UNION ALL
    SELECT 'sparse_ohlc', symbol || ' ' || min(date)::VARCHAR, min(date)
    FROM broken_rows JOIN (SELECT symbol, sum(observations) AS days FROM entities GROUP BY symbol) USING (symbol)
    WHERE broken & {missing_ohlc} <> 0
    GROUP BY symbol HAVING count(*) > 0.01 * any_value(days)
    UNION ALL
    SELECT quantity || '_drift', 'PSI ' || round(psi, 2)::VARCHAR || ' ' || month::DATE::VARCHAR, month::DATE FROM drift WHERE psi > 0.25
    UNION ALL
    SELECT replace(ended_because, ' ', '_'), entity || ' ' || last_date::VARCHAR, last_date FROM entities
    WHERE ended_because IN ('delisted', 'ticker reused')
)
SELECT rule, count(*) AS n, min_by(coalesce(example, 'a row without a day'), (date, example), 3) AS examples
FROM found GROUP BY rule ORDER BY n DESC, rule
