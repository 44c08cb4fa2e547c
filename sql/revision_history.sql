-- The revisions of the active feed: when, number, sound and quarantined rows, new and ended ones.
SELECT created_at, revision, total_rows - quarantined_rows, quarantined_rows, new_rows, ended_rows
FROM revisions WHERE feed_id = (SELECT feed_id FROM active_view) ORDER BY revision
