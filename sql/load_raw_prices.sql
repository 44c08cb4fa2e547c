-- Appends rows as versions that were first seen in a revision.
INSERT INTO raw_price_versions
SELECT {feed_id}, {revision}, symbol, date, open, high, low, close, volume, adj_close, broken, unreadable
FROM ({rows})
{order}
