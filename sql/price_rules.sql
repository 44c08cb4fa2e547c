-- The rules of prices, declared once. scope `row`: `condition` is SQL over the columns of price_scan, evaluated for all
-- rules in one pass into the bits of `broken`. scope `set`: found after loading, from more than one row. A `hard` rule
-- moves the row to quarantined_prices; a `soft` one counts it. threshold: the share of rows above which it is reported.
-- The number of a rule is its bit in stored rows and is never given to another rule.
CREATE OR REPLACE {temporary} TABLE {name} AS
SELECT (1 << number)::UINTEGER AS bit, * FROM (VALUES
    (0, 'unreadable_date', 'row', 'hard', 0.0,
        'date IS NULL',
        'a row without a day belongs nowhere; dates are written YYYY-MM-DD'),
    (1, 'date_out_of_range', 'row', 'hard', 0.0,
        'date < DATE ''1962-01-01'' OR date > current_date + 1',
        'daily electronic prices begin in 1962, and nobody knows tomorrow''s (a day is allowed for time zones)'),
    (2, 'unreadable_number', 'row', 'hard', 0.0,
        'unreadable IS NOT NULL AND date IS NOT NULL',
        'text where a number belongs'),
    (3, 'bad_symbol', 'set', 'hard', 0.0,
        NULL,
        'a ticker is 1 to 12 of A-Z 0-9 . ^ = -, without blanks'),
    (4, 'close_not_positive', 'row', 'hard', 0.0001,
        'NOT coalesce(close > 0 AND close < 1e12, false)',
        'a null, NaN, infinite, zero or negative close has no return; no share ever cost 1e12'),
    (5, 'adj_close_not_positive', 'row', 'hard', 0.0001,
        'NOT coalesce(isnan(adj_close) OR (adj_close > 0 AND adj_close < 1e15), true)',
        'the adjustment factor adj_close/close must be positive and finite; null or NaN is missing'),
    (6, 'ohlc_order', 'row', 'hard', 0.0001,
        'high_ok < 0.99 * greatest(open_ok, close, low_ok) OR low_ok > 1.01 * least(open_ok, close, high_ok)',
        'high is the highest and low the lowest price of a day; more than 1 % off is a bad tick'),
    (7, 'volume_not_a_count', 'row', 'hard', 0.0001,
        'volume < 0 OR volume <> trunc(volume) OR volume > 1e15 OR isnan(volume)',
        'volume counts shares'),
    (8, 'duplicate', 'set', 'hard', 0.0,
        NULL,
        'one row a symbol and day; the one with the fewest broken rules, then the smallest values, stays'),
    (9, 'missing_ohlc', 'row', 'soft', 0.0005,
        '(open_ok IS NULL OR high_ok IS NULL OR low_ok IS NULL) AND has_ohlc',
        'a null, zero or negative open, high or low is read as missing'),
    (10, 'ohlc_order_slight', 'row', 'soft', 0.0001,
        'high_ok < (1 - 1e-6) * greatest(open_ok, close, low_ok) OR low_ok > (1 + 1e-6) * least(open_ok, close, high_ok)',
        'rounding of adjusted prices; the row stays'),
    (11, 'zero_volume', 'row', 'soft', 0.05,
        'volume = 0',
        'nobody traded: the close is a quotation, and the day is not tradable')
) AS declared (number, rule, scope, severity, threshold, condition, reason);
