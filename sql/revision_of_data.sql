-- The newest revision that has this content, from wherever: a release does not say where its prices lie.
SELECT max(revision)
FROM main.revisions
WHERE data_version = $data_version
HAVING max(revision) IS NOT NULL
