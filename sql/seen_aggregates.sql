-- The whole active view in numbers, for the revision's own row.
SELECT count(*) AS total_rows,
    count(*) FILTER (WHERE bad) AS quarantined_rows,
    min(date) FILTER (WHERE NOT bad) AS first_date,
    max(date) FILTER (WHERE NOT bad) AS last_date,
    list_filter([{columns}], lambda x: x IS NOT NULL) AS columns
FROM (
    SELECT *, broken & {hard} <> 0 OR date IN (
        SELECT date FROM dropped_sessions WHERE feed_id = {feed_id} AND revision = {revision}
    ) AS bad
    FROM seen_prices
)
