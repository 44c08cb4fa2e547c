-- Splits snap to the simplest n:m within 2 %, large ones to round numbers. A dividend takes less than a fifth of the price:
-- adj_close/close steps up by 1/(1 - yield).
-- Where the factor stays and the close jumps as a split would, with the volume going the other way by about as much, a split is
-- suspected. Beyond -90 % and +300 % a jump is a price_step if it has the size and the volume of a split (without volumes the
-- size alone counts), if it is a power of ten on an ordinary volume (another unit), or if it is a gain on less than {heavy}
-- times the usual volume, which no news makes: the entity ends there (entities.sql), nothing is repaired, and nobody loses 99 %
-- or gains tenfold by it. Any other loss or gain of that size is an extreme_move, which counts. All of it is judged from what
-- was known at that close.
INSERT INTO corporate_actions
WITH ratios AS (
    SELECT n / m AS shares, n + m AS plainness, n = 1 OR m = 1 OR n + m = 5 AS usual
    FROM (SELECT unnest(range(1, 51))::DOUBLE AS n) CROSS JOIN (SELECT unnest(range(1, 51))::DOUBLE AS m)
    WHERE n <> m
    UNION ALL
    SELECT unnest([size, 1 / size]), size + 1, true
    FROM (SELECT unnest([60, 70, 75, 80, 90, 100, 120, 125, 150, 200, 250, 300, 400, 500, 600, 750, 800, 1000, 1250, 1500,
        2000, 2500, 3000, 4000, 5000, 10000])::DOUBLE AS size)
),
round_sizes AS (
    SELECT unnest([size, 1 / size]) AS shares FROM (SELECT unnest([10, 15, 20, 25, 30, 40, 50, 100, 200, 500, 1000])::DOUBLE AS size)
),
steps AS (
    SELECT *, 1 - 1 / factor_ratio AS yield FROM block_events WHERE abs(ln(factor_ratio)) > {factor_step}
),
splits AS (
    SELECT symbol, date, arg_min(shares, plainness) AS shares
    FROM steps JOIN ratios ON ratios.shares BETWEEN factor_ratio / 1.02 AND factor_ratio * 1.02
    WHERE yield NOT BETWEEN 0 AND 0.2 AND abs(ln(factor_ratio)) > 0.04
    GROUP BY ALL
),
jumps AS (
    SELECT symbol, date, return_ratio, return_ratio NOT BETWEEN {collapse} AND {explosion} AS extreme,
        (SELECT min(shares) FROM ratios
         WHERE usual AND shares BETWEEN 1 / return_ratio / 1.02 AND 1 / return_ratio * 1.02
            AND volume_ratio BETWEEN least(1, shares / 2) AND greatest(1, shares * 2)
            AND (volume_ratio > 1) = (shares > 1)) AS shares,
        (abs(log10(return_ratio) - round(log10(return_ratio))) < log10(1.02) AND volume_ratio BETWEEN 0.2 AND 5)
            OR (return_ratio > 1 AND volume_ratio < {heavy}) AS unbelieved,
        EXISTS (
            FROM round_sizes WHERE shares BETWEEN 1 / return_ratio / 1.02 AND 1 / return_ratio * 1.02
            AND coalesce(volume_ratio BETWEEN shares / 3 AND shares * 3, true)
        ) AS round_size
    FROM block_events
    WHERE abs(ln(return_ratio)) > {jump} AND gap <= {long_gap} AND date - date_before < {year}
)
SELECT symbol, date, 'split', shares FROM splits
UNION ALL
SELECT symbol, date, 'dividend', yield FROM steps WHERE yield BETWEEN 0 AND 0.2
UNION ALL
SELECT symbol, date, CASE
    WHEN extreme AND (coalesce(unbelieved, false) OR round_size) THEN 'price_step'
    WHEN extreme THEN 'extreme_move'
    WHEN shares IS NULL THEN 'unexplained_jump' ELSE 'suspected_split' END,
    CASE WHEN extreme THEN return_ratio - 1 ELSE coalesce(shares, return_ratio - 1) END
FROM jumps
ORDER BY ALL
