-- A symbol that comes back after a year, or after a long gap at another price, is another company from then on; and one whose
-- price steps as by a split or a change of unit that nothing adjusts is treated so, with nothing lost. A history that stops more
-- than ten sessions before the last one has ended; its holder gets the last close, less 30 % if it was falling apart (Shumway
-- 1997). A failure or a real gain ends nothing: its holder bears it.
INSERT INTO entities
WITH starts AS (
    SELECT symbol, date AS first_date, date_before,
        row_number() OVER history AS place,
        lead(date_before) OVER history AS date_before_next,
        lead(step) OVER history AS step_next
    FROM (
        SELECT events.*, steps.symbol IS NOT NULL AS step
        FROM block_events AS events
        LEFT JOIN corporate_actions AS steps
            ON steps.symbol = events.symbol AND steps.date = events.date AND steps.action = 'price_step'
    )
    WHERE is_event AND (date_before IS NULL OR date - date_before >= {year} OR step
        OR (gap > {long_gap} AND return_ratio NOT BETWEEN 1 / 3.0 AND 3))
    WINDOW history AS (PARTITION BY symbol ORDER BY date)
),
spans AS (
    SELECT symbol, max(date) AS symbol_end, count(adj_close) > 0 AS adjusted FROM block_prices GROUP BY symbol
),
lives AS (
    SELECT CASE place WHEN 1 THEN symbol ELSE symbol || '#' || place END AS entity, symbol, first_date,
        coalesce(date_before_next, symbol_end) AS last_date, adjusted, step_next
    FROM starts JOIN spans USING (symbol)
),
counted AS (
    SELECT entity, count(*) AS observations
    FROM lives JOIN block_prices ON block_prices.symbol = lives.symbol AND date BETWEEN first_date AND last_date
    WHERE adj_close IS NOT NULL OR NOT adjusted
    GROUP BY entity
),
ends AS (
    SELECT lives.*, session,
        CASE WHEN step_next THEN 'price step'
            WHEN step_next IS NOT NULL THEN 'ticker reused'
            WHEN session < (SELECT max(session) FROM price_sessions) - {patience} THEN 'delisted' END AS ended_because
    FROM lives JOIN price_sessions ON price_sessions.date = last_date
),
last_quarters AS (
    SELECT entity, arg_max(close, date) AS last_close, last_close / arg_min(close, date) AS quarter_ratio
    FROM ends JOIN block_prices AS recent ON recent.symbol = ends.symbol
        AND date BETWEEN first_date AND last_date AND recent.session >= ends.session - {quarter}
    WHERE ended_because IS NOT NULL
    GROUP BY entity
)
SELECT entity, symbol, first_date, last_date, adjusted, ended_because,
    CASE WHEN ended_because = 'price step' THEN 0
        WHEN last_close < 1 OR quarter_ratio < 0.5 THEN -0.3
        WHEN ended_because IS NOT NULL THEN 0 END,
    coalesce(observations, 0)
FROM ends LEFT JOIN last_quarters USING (entity) LEFT JOIN counted USING (entity)
ORDER BY entity
