-- How often each rule was broken in the active view, and examples.
WITH broken_rows AS (
    SELECT symbol, date, broken FROM seen_prices WHERE broken <> 0
),
counted AS (
    SELECT rule, count(*) AS n, min_by(coalesce(symbol, '?') || ' ' || coalesce(date::VARCHAR, '?'), (date, symbol), 3) AS examples
    FROM broken_rows JOIN declared_price_rules AS rules ON broken_rows.broken & rules.bit <> 0
    WHERE scope <> 'session'
        -- a source that has no adj_close at all misses none
        AND (rule <> 'missing_adj_close' OR (
            SELECT list_contains(columns, 'adj_close') FROM revisions JOIN active_view USING (feed_id, revision)
        ))
    GROUP BY rule
    UNION ALL
    SELECT dropped.rule, count(*), min_by(symbol || ' ' || date::VARCHAR, (date, symbol), 3)
    FROM seen_prices JOIN dropped_sessions AS dropped USING (date)
    WHERE (feed_id, revision) IN (SELECT (feed_id, revision) FROM active_view)
    GROUP BY dropped.rule
    UNION ALL
    SELECT action, count(*), min_by(symbol || ' ' || date::VARCHAR, (date, symbol), 3)
    FROM corporate_actions WHERE action IN ('suspected_split', 'unexplained_jump') GROUP BY action
    UNION ALL
    SELECT 'stale_close', count(*), min_by(symbol || ' ' || date::VARCHAR, (date, symbol), 3)
    FROM stale_prices HAVING count(*) > 0
    UNION ALL
    SELECT replace(ended_because, ' ', '_'), count(*), min_by(entity || ' ' || last_date::VARCHAR, (last_date, entity), 3)
    FROM entities WHERE ended_because IS NOT NULL GROUP BY ended_because
)
SELECT rule, coalesce(severity, 'soft') AS severity, n, examples, coalesce(reason, '') AS reason
FROM counted LEFT JOIN declared_price_rules USING (rule)
ORDER BY severity, n DESC, rule
