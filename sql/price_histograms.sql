-- The block's returns in ten bins, and its volumes in half decades, by day. Of raw closes: a dividend that is paid later does
-- not move them.
INSERT INTO price_histograms
SELECT date, 'return', (log_return > -0.04)::UTINYINT + (log_return > -0.02)::UTINYINT + (log_return > -0.01)::UTINYINT + (log_return > -0.004)::UTINYINT + (log_return > 0)::UTINYINT
    + (log_return > 0.004)::UTINYINT + (log_return > 0.01)::UTINYINT + (log_return > 0.02)::UTINYINT + (log_return > 0.04)::UTINYINT AS bin, count(*)
FROM (SELECT date, ln(close / lag(close) OVER (PARTITION BY symbol ORDER BY date)) AS log_return FROM block_prices)
WHERE log_return IS NOT NULL AND date >= DATE '{since}'
GROUP BY date, bin
UNION ALL
SELECT date, 'volume', greatest(floor(2 * log10(volume)), 0)::UTINYINT AS bin, count(*)
FROM block_prices WHERE volume > 0 AND date >= DATE '{since}'
GROUP BY date, bin
