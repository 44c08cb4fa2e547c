-- The newest revision of a feed that has this content.
SELECT max(revision)
FROM main.revisions
JOIN main.feeds USING (feed_id)
WHERE feed = $feed AND data_version = $data_version
HAVING max(revision) IS NOT NULL
