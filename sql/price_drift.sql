-- Population stability index of each month against the twelve before it, where both have a thousand rows or more; half a row
-- is added to each bin, so that an empty one is no infinity.
WITH months AS (
    SELECT quantity, date_trunc('month', date) AS month, bin, sum(n) AS n FROM price_histograms GROUP BY ALL
),
bins AS (SELECT DISTINCT quantity, bin FROM months),
compared AS (
    SELECT this.quantity, this.month, bins.bin, coalesce(any_value(cell.n), 0) AS n, coalesce(sum(past.n), 0) AS n_before
    FROM (SELECT DISTINCT quantity, month FROM months) AS this
    JOIN bins USING (quantity)
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
)
SELECT quantity, month, sum((share - share_before) * ln(share / share_before)) AS psi
FROM shares WHERE total >= 1000 AND total_before >= 1000
GROUP BY quantity, month
