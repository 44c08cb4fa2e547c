INSERT INTO main.releases (checkpoint, content_hash, target, commit, tag)
VALUES ($checkpoint, $content_hash, $target, $commit, $tag)
ON CONFLICT DO NOTHING
