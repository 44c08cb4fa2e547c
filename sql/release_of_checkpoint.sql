-- Whether the content of a checkpoint stands at a target.
SELECT 1
FROM main.releases AS there
JOIN main.releases AS here USING (content_hash)
WHERE here.checkpoint = $checkpoint AND there.target = $target
