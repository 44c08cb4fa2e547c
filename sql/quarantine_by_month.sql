-- Rows in quarantine by month and by the first rule that each broke.
SELECT date_trunc('month', date) AS month, rule, count(*) FROM quarantined_prices WHERE date IS NOT NULL
GROUP BY ALL ORDER BY month, rule
