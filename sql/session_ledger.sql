-- The sound rows of each session of a feed's newest revision.
SELECT date, n FROM session_counts
WHERE feed_id = {feed_id} AND n > 0
    AND date NOT IN (SELECT date FROM dropped_sessions WHERE feed_id = {feed_id} AND revision = {revision})
