-- The rows of a group of files with the same columns, typed and judged: `broken` has the bits of the row rules, all in
-- one pass. unreadable is the text of a date or a number that is neither empty nor readable.
SELECT symbol, date, open, high, low, close, volume::DOUBLE AS volume, adj_close,
    ({broken})::UINTEGER AS broken, unreadable
FROM (
    SELECT trim(symbol, ' ' || chr(9) || chr(10) || chr(13) || chr(160)) AS symbol, day AS date,
        {open} AS open, {high} AS high, {low} AS low, {close} AS close,
        {volume} AS volume, {adj_close} AS adj_close,
        CASE WHEN {open} > 0 AND {open} < 1e12 THEN {open} END AS open_ok,
        CASE WHEN {high} > 0 AND {high} < 1e12 THEN {high} END AS high_ok,
        CASE WHEN {low} > 0 AND {low} < 1e12 THEN {low} END AS low_ok,
        {has_ohlc} AS has_ohlc, {has_adj_close} AS has_adj_close, {unreadable} AS unreadable
    FROM (SELECT *, {day} AS day FROM {files})
)
{wanted}
