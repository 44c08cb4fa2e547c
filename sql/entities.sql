-- A symbol that comes back after a long gap at another price, or changes its price beyond what a share can do in a day,
-- is another company from then on. A history that stops more than ten sessions before the last one has ended; its
-- holder gets the last close, less 30 % if it was falling apart (Shumway 1997), or the day's loss if that broke the entity.
DELETE FROM entities;

INSERT INTO entities
WITH starts AS (
    SELECT symbol, date AS first_date, date_before, return_ratio,
        row_number() OVER history AS place,
        lead(date_before) OVER history AS date_before_next,
        lead(gap) OVER history AS gap_next,
        lead(return_ratio) OVER history AS ratio_next
    FROM price_events
    WHERE date_before IS NULL
        OR (gap > {long_gap} AND return_ratio NOT BETWEEN 1 / 3.0 AND 3)
        OR return_ratio NOT BETWEEN {collapse} AND {explosion}
    WINDOW history AS (PARTITION BY symbol ORDER BY date)
),
spans AS (
    SELECT symbol, max(date) AS symbol_end, count(adj_close) > 0 AS adjusted FROM prices GROUP BY symbol
),
lives AS (
    SELECT CASE place WHEN 1 THEN symbol ELSE symbol || '#' || place END AS entity, symbol, first_date,
        coalesce(date_before_next, symbol_end) AS last_date, adjusted, gap_next, ratio_next
    FROM starts JOIN spans USING (symbol)
),
ends AS (
    SELECT lives.*, session,
        CASE WHEN gap_next > {long_gap} THEN 'ticker reused'
            WHEN gap_next IS NOT NULL THEN 'price broke'
            WHEN session < (SELECT max(session) FROM price_sessions) - {patience} THEN 'delisted' END AS ended_because
    FROM lives JOIN price_sessions ON price_sessions.date = last_date
),
last_quarters AS (
    SELECT entity, arg_max(close, prices.date) AS last_close, last_close / arg_min(close, prices.date) AS quarter_ratio
    FROM ends JOIN prices USING (symbol) JOIN price_sessions USING (date)
    WHERE ended_because IS NOT NULL AND prices.date BETWEEN first_date AND last_date
        AND price_sessions.session >= ends.session - 63
    GROUP BY entity
)
SELECT entity, symbol, first_date, last_date, adjusted, ended_because,
    CASE WHEN ended_because = 'price broke' THEN least(ratio_next - 1, 0)
        WHEN last_close < 1 OR quarter_ratio < 0.5 THEN -0.3
        WHEN ended_because IS NOT NULL THEN 0 END
FROM ends LEFT JOIN last_quarters USING (entity)
ORDER BY entity
