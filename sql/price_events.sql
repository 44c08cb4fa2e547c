-- One pass over the block's rows of each symbol. Ratios are to the row before: close_ratio of the closes, factor_ratio of
-- adj_close/close (more than 5 bp off 1 is a dividend or a split), return_ratio of the adjusted closes. volume_ratio is to the
-- median of the twenty rows before, 0 where that is 0, and NULL where the source has no volume.
CREATE OR REPLACE TEMPORARY TABLE noted_prices AS
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
)
SELECT symbol, date, date_before, gap, close_ratio, coalesce(adj_ratio / close_ratio, 1) AS factor_ratio,
    coalesce(adj_ratio, close_ratio) AS return_ratio, volume_ratio, stale
FROM compared
WHERE {fresh} AND (
    stale OR date_before IS NULL OR gap > {long_gap} OR date - date_before >= {year}
    OR abs(ln(coalesce(adj_ratio / close_ratio, 1))) > {factor_step}
    OR abs(ln(coalesce(adj_ratio, close_ratio))) > {jump}
);

DELETE FROM price_events WHERE {fresh} AND symbol IN (SELECT symbol FROM block_symbols);

INSERT INTO price_events
SELECT * EXCLUDE (stale) FROM noted_prices
WHERE date_before IS NULL OR gap > {long_gap} OR date - date_before >= {year}
    OR abs(ln(factor_ratio)) > {factor_step} OR abs(ln(return_ratio)) > {jump}
ORDER BY symbol, date;

DELETE FROM stale_prices WHERE {fresh} AND symbol IN (SELECT symbol FROM block_symbols);

INSERT INTO stale_prices SELECT symbol, date FROM noted_prices WHERE stale ORDER BY symbol, date;

DROP TABLE noted_prices
