-- The entities, as places in the panel, of which a raw row that is not after $known came or went between the revision that
-- had $data_version and the active one, whichever is later. One NULL if no revision of the feed had it.
WITH base AS (
    SELECT max(revision) AS revision FROM main.revisions JOIN main.feeds USING (feed_id)
    WHERE feed = $feed AND data_version = $data_version
),
span AS (
    SELECT feed_id, least(base.revision, active.revision) AS earlier, greatest(base.revision, active.revision) AS later
    FROM main.active_view AS active CROSS JOIN base WHERE base.revision IS NOT NULL
),
moved AS (
    SELECT symbol FROM main.raw_price_versions JOIN span USING (feed_id)
    WHERE first_revision > earlier AND first_revision <= later AND date <= $known
    UNION
    SELECT symbol FROM main.raw_price_ends JOIN span USING (feed_id)
    WHERE last_revision >= earlier AND last_revision < later AND date <= $known
)
SELECT asset FROM moved JOIN temp.panel_index AS panel_index USING (symbol)
UNION ALL
SELECT NULL WHERE NOT EXISTS (FROM span)
