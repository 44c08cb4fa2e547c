-- The result of each test for a planner of a checkpoint: that of its own, or one that failed for somebody else and speaks of
-- what all planners share. No strategy takes part in `fill_lag` and `label_alignment`; `future_invariance` makes features and universe
-- again, beside the decisions of whom it is asked about, who may be a strategy of the user's (its name has a colon).
-- A failure stands on the prices on which it was found, and where no prices take part for good; a test without a result gives
-- way to one with.
WITH found AS (
    SELECT test, strategy, passed, finding, created_at, rowid AS place,
        data_version = first_value(data_version) OVER (PARTITION BY test, strategy ORDER BY created_at DESC, rowid DESC) AS current
    FROM main.audit_results WHERE checkpoint = $checkpoint
), standing AS (
    SELECT test, strategy, passed,
        finding || CASE WHEN passed IS false AND max(created_at) FILTER (passed) OVER (PARTITION BY test, strategy) > created_at
            THEN ' (it passed later, and a failure stands)' ELSE '' END AS finding
    FROM found WHERE current OR test IN ('null_market', 'known_truth')
    QUALIFY row_number() OVER (
        PARTITION BY test, strategy ORDER BY passed IS false DESC, passed IS NULL, created_at DESC, place DESC
    ) = 1
)
SELECT test, passed, CASE WHEN strategy = $strategy THEN finding ELSE finding || ' (audit of ' || strategy || ')' END
FROM standing
WHERE strategy = $strategy
   OR (NOT passed AND (test IN ('fill_lag', 'label_alignment') OR (test = 'future_invariance' AND NOT contains(strategy, ':'))))
QUALIFY row_number() OVER (PARTITION BY test ORDER BY passed IS false DESC, strategy = $strategy DESC, strategy) = 1
ORDER BY test
