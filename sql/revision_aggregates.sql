-- The rows that a revision appended in numbers: how many broke each rule, how many went to quarantine, for rules that nobody has
-- accepted (refused) or any, which columns hold anything.
SELECT count(*)::DOUBLE AS new_rows, {rule_counts},
    count(*) FILTER (WHERE broken & {refusing} <> 0 OR dropped.rule NOT IN ({accepted}))::DOUBLE AS refused_rows,
    count(DISTINCT symbol)::DOUBLE AS symbols,
    list_filter([{columns}], lambda x: x IS NOT NULL) AS columns
FROM raw_price_versions
LEFT JOIN (
    SELECT date, rule FROM dropped_sessions WHERE feed_id = {feed_id} AND revision = {revision}
) AS dropped USING (date)
WHERE first_revision = {revision}
