-- The verdict of each test for a planner of a checkpoint: the newest one of its own, or one that failed for somebody else and
-- speaks of what all planners share. No strategy takes part in `fill_lag` and `label_alignment`; `truncation` makes features and
-- universe again, beside the decisions of whom it is asked about, who may be a strategy of the user's (its name has a colon).
WITH newest AS (
    SELECT test, strategy, passed, finding
    FROM main.audit_results
    WHERE checkpoint = $checkpoint
    QUALIFY row_number() OVER (PARTITION BY test, strategy ORDER BY created_at DESC, rowid DESC) = 1
)
SELECT test, passed, CASE WHEN strategy = $strategy THEN finding ELSE finding || ' (audit of ' || strategy || ')' END
FROM newest
WHERE strategy = $strategy
   OR (NOT passed AND (test IN ('fill_lag', 'label_alignment') OR (test = 'truncation' AND NOT contains(strategy, ':'))))
QUALIFY row_number() OVER (PARTITION BY test ORDER BY passed IS false DESC, strategy = $strategy DESC, strategy) = 1
ORDER BY test
