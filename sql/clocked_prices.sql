-- The sound rows on the clock of the feed. Where symbols have calendars of their own, a row stands at the first session of the
-- clock whose close is not before its own: a decision there knows it, and none before does. Of several, the last one stands.
CREATE OR REPLACE VIEW clocked_prices AS
{rows}
