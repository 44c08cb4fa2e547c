-- Splits snap to the simplest n:m within 2 %. A dividend takes less than a fifth of the price: adj_close/close steps up
-- by 1/(1 - yield). Where the factor stays and the close jumps as a split would, with the volume going the other way
-- by about as much, a split is suspected; nothing is repaired, since a crash can look the same.
DELETE FROM corporate_actions WHERE {fresh} AND symbol IN (SELECT symbol FROM block_symbols);

INSERT INTO corporate_actions
WITH ratios AS (
    SELECT n / m AS shares, n + m AS plainness, n = 1 OR m = 1 OR n + m = 5 AS usual
    FROM (SELECT unnest(range(1, 101))::DOUBLE AS n) CROSS JOIN (SELECT unnest(range(1, 101))::DOUBLE AS m)
    WHERE n <> m
),
fresh_events AS (
    FROM price_events WHERE {fresh} AND symbol IN (SELECT symbol FROM block_symbols)
),
steps AS (
    SELECT *, 1 - 1 / factor_ratio AS yield FROM fresh_events WHERE abs(ln(factor_ratio)) > {factor_step}
),
splits AS (
    SELECT symbol, date, arg_min(shares, plainness) AS shares
    FROM steps JOIN ratios ON ratios.shares BETWEEN factor_ratio / 1.02 AND factor_ratio * 1.02
    WHERE yield NOT BETWEEN 0 AND 0.2 AND abs(ln(factor_ratio)) > 0.04
    GROUP BY ALL
),
jumps AS (
    SELECT symbol, date, return_ratio,
        (SELECT min(shares) FROM ratios
         WHERE usual AND shares BETWEEN 1 / close_ratio / 1.02 AND 1 / close_ratio * 1.02
            AND volume_ratio BETWEEN least(1, shares / 2) AND greatest(1, shares * 2)
            AND (volume_ratio > 1) = (shares > 1)) AS shares
    FROM fresh_events
    WHERE abs(ln(return_ratio)) > {jump} AND gap <= {long_gap}
)
SELECT symbol, date, 'split', shares FROM splits
UNION ALL
SELECT symbol, date, 'dividend', yield FROM steps WHERE yield BETWEEN 0 AND 0.2
UNION ALL
SELECT symbol, date, CASE WHEN shares IS NULL THEN 'unexplained_jump' ELSE 'suspected_split' END,
    coalesce(shares, return_ratio - 1)
FROM jumps
ORDER BY ALL
