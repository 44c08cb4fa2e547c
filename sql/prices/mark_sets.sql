-- What the new rows of a revision break together, or against a calendar. They lie in order, so that twins are neighbours. Of twins
-- the row with the fewest broken rules, then the smallest values, stays: the choice does not depend on the order of the files.
UPDATE price_history SET broken = broken | {duplicate}
WHERE rowid IN (
    SELECT twin.rowid FROM price_history AS twin SEMI JOIN (
        SELECT symbol, date FROM price_history WHERE valid_from = {revision}
        QUALIFY symbol = lag(symbol) OVER () AND date = lag(date) OVER ()
    ) AS neighbours USING (symbol, date)
    WHERE valid_from = {revision}
    QUALIFY row_number() OVER (
        PARTITION BY symbol, date
        ORDER BY bit_count(broken & {hard}), broken, close, open, high, low, volume, adj_close
    ) > 1
);

-- Judged on the distinct symbols: a pattern on every row would cost more than the load. `X#2` is how the second company behind
-- the symbol X is called (features/adjust.py), so that no symbol may end so.
UPDATE price_history SET broken = broken | {bad_symbol}
WHERE valid_from = {revision} AND coalesce(symbol, '') IN (
    SELECT symbol FROM (SELECT DISTINCT coalesce(symbol, '') AS symbol FROM price_history WHERE valid_from = {revision})
    WHERE length(symbol) NOT BETWEEN 1 AND 64 OR regexp_matches(symbol, '\p{{C}}|#[0-9]+$')
);

-- calendar_sessions: of the feed's calendar, or of all of those that its symbols have.
UPDATE price_history SET broken = broken | {stray_session}
WHERE valid_from = {revision} AND rowid IN (
    SELECT history.rowid FROM price_history AS history
    LEFT JOIN symbol_calendars AS own ON own.feed_id = history.feed_id AND own.symbol = history.symbol
    ANTI JOIN calendar_sessions AS known
        ON known.date = history.date AND known.calendar = coalesce(own.calendar, '{calendar}')
    WHERE history.valid_from = {revision} AND history.date IS NOT NULL
)
