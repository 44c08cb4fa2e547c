-- What the price contract said of the newest revision with this data version.
SELECT outcomes_json
FROM main.revisions
WHERE data_version = $data_version
ORDER BY revision DESC
LIMIT 1
