-- The days of the active view, from the ledger of the feed's newest revision if that is shown, else from its rows.
DELETE FROM price_sessions;

INSERT INTO price_sessions
SELECT date, row_number() OVER (ORDER BY date), n FROM ({days}) ORDER BY date
