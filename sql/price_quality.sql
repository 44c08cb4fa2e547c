-- How often each rule was broken in the active view, of how many rows, and examples.
WITH broken_rows AS (
    SELECT symbol, date, broken FROM seen_prices WHERE broken <> 0
),
size AS (SELECT total_rows, columns FROM revisions JOIN active_view USING (feed_id, revision)),
drift AS ({drift}),
found AS (
    SELECT rule, symbol || ' ' || date::VARCHAR AS example, date
    FROM (
        SELECT rule, coalesce(symbol, '?') AS symbol, date
        FROM broken_rows JOIN declared_price_rules AS rules ON broken_rows.broken & rules.bit <> 0
        WHERE scope IN ('row', 'set')
            -- a source that has no adj_close at all misses none
            AND (rule <> 'missing_adj_close' OR (SELECT list_contains(columns, 'adj_close') FROM size))
        UNION ALL
        SELECT dropped.rule, symbol, date
        FROM seen_prices JOIN dropped_sessions AS dropped USING (date)
        WHERE (feed_id, revision) IN (SELECT (feed_id, revision) FROM active_view)
        UNION ALL
        SELECT action, symbol, date FROM corporate_actions WHERE action IN ('suspected_split', 'unexplained_jump', 'extreme_move', 'price_step')
        UNION ALL
        SELECT 'large_return', symbol, date FROM price_events
        WHERE return_ratio NOT BETWEEN 0.5 AND 1.5 AND gap <= {long_gap}
        UNION ALL
        SELECT 'stale_close', symbol, date FROM stale_prices
        UNION ALL
        SELECT 'busy_factor', symbol, max(date) FROM price_events
        WHERE abs(ln(factor_ratio)) > {factor_step} GROUP BY symbol, year(date) HAVING count(*) > 14
        UNION ALL
        SELECT 'sparse_ohlc', symbol, min(date)
        FROM broken_rows JOIN (SELECT symbol, sum(observations) AS days FROM entities GROUP BY symbol) USING (symbol)
        WHERE broken & (SELECT bit FROM declared_price_rules WHERE rule = 'missing_ohlc') <> 0
        GROUP BY symbol HAVING count(*) > 0.01 * any_value(days)
        UNION ALL
        SELECT quantity || '_drift', 'PSI ' || round(psi, 2)::VARCHAR, month::DATE FROM drift WHERE psi > 0.25
        UNION ALL
        SELECT replace(ended_because, ' ', '_'), entity, last_date FROM entities WHERE ended_because IN ('delisted', 'ticker reused')
    )
),
counted AS (
    SELECT rule, count(*) AS n, min_by(coalesce(example, 'a row without a day'), (date, example), 3) AS examples
    FROM found GROUP BY rule
)
SELECT rule, n, total_rows, examples
FROM counted JOIN declared_price_rules USING (rule) CROSS JOIN size
ORDER BY severity, n DESC, rule
