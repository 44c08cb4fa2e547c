-- The rows of a revision in numbers: how many broke each rule, and what may be judged before it is shown.
SELECT count(*)::DOUBLE AS new_rows, {rule_counts},
    count(*) FILTER (WHERE broken & {hard} <> 0)::DOUBLE AS quarantined_rows
FROM raw_price_versions
WHERE first_revision = {revision}
