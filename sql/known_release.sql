SELECT commit
FROM main.releases
WHERE content_hash = $content_hash AND target = $target
