-- The rows on days on which the exchange of their symbol was closed. calendar_sessions: of the feed's calendar, or of all of
-- those that its symbols have.
UPDATE raw_price_versions SET broken = broken | {bit}
WHERE first_revision = {revision} AND rowid IN (
    SELECT version.rowid FROM raw_price_versions AS version
    LEFT JOIN symbol_calendars AS own ON own.feed_id = version.feed_id AND own.symbol = version.symbol
    ANTI JOIN calendar_sessions AS known
        ON known.date = version.date AND known.calendar = coalesce(own.calendar, '{calendar}')
    WHERE version.first_revision = {revision} AND version.date IS NOT NULL
)
