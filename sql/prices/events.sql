-- One pass over the block's rows of each symbol. Ratios are to the row before: close_ratio of the closes, factor_ratio of
-- adj_close/close (more than 5 bp off 1 is a dividend or a split), return_ratio of the adjusted closes. volume_ratio is to the
-- median of the twenty rows before, 0 where that is 0, and NULL where the source has no volume.
CREATE OR REPLACE TEMPORARY TABLE block_events AS
WITH compared AS (
    SELECT symbol, date, lag(date) OVER history AS date_before,
        session - lag(session) OVER history AS gap,
        close / lag(close) OVER history AS close_ratio,
        adj_close / lag(adj_close) OVER history AS adj_ratio,
        CASE WHEN volume IS NOT NULL THEN coalesce(
            volume / nullif(median(volume) OVER (history ROWS BETWEEN 20 PRECEDING AND 1 PRECEDING), 0), 0
        ) END AS volume_ratio,
        coalesce(
            close = lag(close, 1) OVER history AND close = lag(close, 2) OVER history
            AND close = lag(close, 3) OVER history AND close = lag(close, 4) OVER history, false
        ) AS stale
    FROM block_prices
    WINDOW history AS (PARTITION BY symbol ORDER BY date)
),
noted AS (
    SELECT symbol, date, date_before, gap, close_ratio, coalesce(adj_ratio / close_ratio, 1) AS factor_ratio,
        coalesce(adj_ratio, close_ratio) AS return_ratio, volume_ratio, stale
    FROM compared
)
SELECT *, date_before IS NULL OR gap > {long_gap} OR date - date_before >= {year}
    OR abs(ln(factor_ratio)) > {factor_step} OR abs(ln(return_ratio)) > {jump} AS is_event
FROM noted WHERE stale OR is_event;

INSERT INTO price_events SELECT * EXCLUDE (stale, is_event) FROM block_events WHERE is_event ORDER BY symbol, date;

INSERT INTO stale_prices SELECT symbol, date FROM block_events WHERE stale ORDER BY symbol, date;

-- The block's returns in ten bins, and its volumes in half decades, by day. Of raw closes: a dividend that is paid later does
-- not move them.
INSERT INTO price_histograms
SELECT date, 'return', (log_return > -0.04)::UTINYINT + (log_return > -0.02)::UTINYINT + (log_return > -0.01)::UTINYINT
    + (log_return > -0.004)::UTINYINT + (log_return > 0)::UTINYINT + (log_return > 0.004)::UTINYINT
    + (log_return > 0.01)::UTINYINT + (log_return > 0.02)::UTINYINT + (log_return > 0.04)::UTINYINT AS bin, count(*)
FROM (SELECT date, ln(close / lag(close) OVER (PARTITION BY symbol ORDER BY date)) AS log_return FROM block_prices)
WHERE log_return IS NOT NULL GROUP BY date, bin
UNION ALL
SELECT date, 'volume', greatest(floor(2 * log10(volume)), 0)::UTINYINT AS bin, count(*)
FROM block_prices WHERE volume > 0 GROUP BY date, bin
