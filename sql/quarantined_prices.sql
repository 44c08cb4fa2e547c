-- The rows of the active view that broke a hard rule: the first rule that each broke, and all of them.
CREATE OR REPLACE VIEW quarantined_prices AS
SELECT * EXCLUDE (broken), rules[1] AS rule
FROM (
    SELECT seen.*, list_filter([{names}, dropped.rule], lambda x: x IS NOT NULL) AS rules
    FROM seen_prices AS seen
    LEFT JOIN (
        SELECT date, rule FROM dropped_sessions WHERE feed_id = {feed_id} AND revision = {revision}
    ) AS dropped USING (date)
    WHERE seen.broken & {hard} <> 0 OR dropped.rule IS NOT NULL
)
