-- The derived tables carry more; they hold nothing that the next derivation does not make again.
CREATE TABLE IF NOT EXISTS main.derived_state (feed_id USMALLINT, revision INTEGER, options_json VARCHAR);
DELETE FROM main.derived_state;
