-- What follows from the prices that are shown, made whole in one transaction. A name in braces is a threshold of derive.py.
CREATE OR REPLACE VIEW clocked_prices AS {clocked};

-- The days on which anything traded.
CREATE OR REPLACE TABLE price_sessions AS
SELECT date, (row_number() OVER (ORDER BY date))::INTEGER AS session FROM (SELECT DISTINCT date FROM clocked_prices) ORDER BY date;

-- The rows at which something happens to a symbol: its first, gaps, factor steps, jumps, closes that have not moved for five
-- sessions (stale). Ratios are to the row before: factor_ratio of adj_close/close (more than 5 bp off 1 is a dividend or a split),
-- return_ratio of the adjusted closes. volume_ratio is to the median of the twenty rows before, 0 where that is 0, and NULL
-- where the source has no volume.
CREATE OR REPLACE TABLE price_events AS
WITH compared AS (
    SELECT symbol, date, lag(date) OVER history AS date_before, session - lag(session) OVER history AS gap,
        close / lag(close) OVER history AS close_ratio, adj_close / lag(adj_close) OVER history AS adj_ratio,
        median(volume) OVER (history ROWS BETWEEN 20 PRECEDING AND 1 PRECEDING) AS usual,
        CASE WHEN volume IS NOT NULL THEN coalesce(volume / nullif(usual, 0), 0) END AS volume_ratio,
        coalesce(close = lag(close, 1) OVER history AND close = lag(close, 2) OVER history
            AND close = lag(close, 3) OVER history AND close = lag(close, 4) OVER history, false) AS stale
    FROM clocked_prices JOIN price_sessions USING (date)
    WINDOW history AS (PARTITION BY symbol ORDER BY date)
),
noted AS (
    SELECT symbol, date, date_before, gap, coalesce(adj_ratio / close_ratio, 1) AS factor_ratio,
        coalesce(adj_ratio, close_ratio) AS return_ratio, volume_ratio, stale
    FROM compared
)
FROM noted WHERE stale OR date_before IS NULL OR gap > {long_gap} OR date - date_before >= {year}
    OR abs(ln(factor_ratio)) > {factor_step} OR abs(ln(return_ratio)) > {jump}
ORDER BY symbol, date;

-- action: dividend (value: share of the close before; less than a fifth, adj_close/close steps up by 1/(1 - yield)), split (value: new
-- shares for an old one, the simplest n:m within 2 %, large ones round), suspected_split (the same, seen in the closes and not in
-- the factor, with the volume going the other way by about as much), unexplained_jump, extreme_move, price_step (value: return).
-- Beyond -90 % and +300 % a jump is a price_step if it has the size and the volume of a split (without volumes the size alone
-- counts), if it is a power of ten on an ordinary volume (another unit), or if it is a gain on less than {heavy} times the usual
-- volume, which no news makes: the entity ends before it, nothing is repaired, and nobody loses 99 % or gains tenfold by it. Any
-- other loss or gain of that size is an extreme_move, which counts. All of it is judged from what was known at that close.
CREATE OR REPLACE TABLE corporate_actions AS
WITH ratios AS (
    SELECT n / m AS shares, n + m AS plainness, n = 1 OR m = 1 OR n + m = 5 AS usual
    FROM range(1, 51) AS new_shares(n) CROSS JOIN range(1, 51) AS old_shares(m) WHERE n <> m
    UNION ALL
    SELECT unnest([size, 1 / size]), size + 1, true
    FROM (SELECT unnest([60, 70, 75, 80, 90, 100, 120, 125, 150, 200, 250, 300, 400, 500, 600, 750, 800, 1000, 1250, 1500,
        2000, 2500, 3000, 4000, 5000, 10000])::DOUBLE AS size)
),
steps AS (SELECT *, 1 - 1 / factor_ratio AS yield FROM price_events WHERE abs(ln(factor_ratio)) > {factor_step}),
jumps AS (
    SELECT symbol, date, return_ratio, return_ratio NOT BETWEEN {collapse} AND {explosion} AS extreme,
        (SELECT min(shares) FROM ratios
         WHERE usual AND shares * return_ratio BETWEEN 1 / 1.02 AND 1.02
            AND volume_ratio BETWEEN least(1, shares / 2) AND greatest(1, shares * 2)
            AND (volume_ratio > 1) = (shares > 1)) AS shares,
        (abs(log10(return_ratio) - round(log10(return_ratio))) < log10(1.02) AND volume_ratio BETWEEN 0.2 AND 5)
            OR (return_ratio > 1 AND volume_ratio < {heavy}) AS unbelieved,
        EXISTS (
            FROM ratios WHERE shares * return_ratio BETWEEN 1 / 1.02 AND 1.02
            AND greatest(shares, 1 / shares) IN (10, 15, 20, 25, 30, 40, 50, 100, 200, 500, 1000)
            AND coalesce(volume_ratio BETWEEN shares / 3 AND shares * 3, true)
        ) AS round_size
    FROM price_events
    WHERE abs(ln(return_ratio)) > {jump} AND gap <= {long_gap} AND date - date_before < {year}
)
SELECT symbol, date, 'split' AS action, arg_min(shares, plainness) AS value
FROM steps JOIN ratios ON shares BETWEEN factor_ratio / 1.02 AND factor_ratio * 1.02
WHERE yield NOT BETWEEN 0 AND 0.2 AND abs(ln(factor_ratio)) > 0.04 GROUP BY symbol, date
UNION ALL
SELECT symbol, date, 'dividend', yield FROM steps WHERE yield BETWEEN 0 AND 0.2
UNION ALL
SELECT symbol, date, CASE
    WHEN extreme AND (coalesce(unbelieved, false) OR round_size) THEN 'price_step'
    WHEN extreme THEN 'extreme_move'
    WHEN shares IS NULL THEN 'unexplained_jump' ELSE 'suspected_split' END,
    CASE WHEN extreme THEN return_ratio - 1 ELSE coalesce(shares, return_ratio - 1) END
FROM jumps ORDER BY ALL;

-- A company behind a symbol, which after ticker reuse is symbol#2; ended_because is NULL while it trades; observations: its rows in
-- adjusted_prices. A symbol is another company after a year, after a long gap at another price, and after a price_step. A history
-- that stops more than ten sessions before the last one has ended; its holder gets the last close, less 30 % if it was falling
-- apart (delisting_return, Shumway 1997). A failure or a real gain ends nothing: its holder bears it.
CREATE OR REPLACE TABLE entities AS
WITH starts AS (
    SELECT symbol, date AS first_date, row_number() OVER history AS place,
        lead(date_before) OVER history AS date_before_next, lead(step) OVER history AS step_next
    FROM (
        SELECT *, (symbol, date) IN (SELECT (symbol, date) FROM corporate_actions WHERE action = 'price_step') AS step
        FROM price_events
    )
    WHERE date_before IS NULL OR date - date_before >= {year} OR step
        OR (gap > {long_gap} AND return_ratio NOT BETWEEN 1 / 3.0 AND 3)
    WINDOW history AS (PARTITION BY symbol ORDER BY date)
),
lives AS (
    SELECT CASE place WHEN 1 THEN symbol ELSE symbol || '#' || place END AS entity, symbol, first_date,
        coalesce(date_before_next, symbol_end) AS last_date, adjusted, step_next
    FROM starts JOIN (
        SELECT symbol, max(date) AS symbol_end, count(adj_close) > 0 AS adjusted FROM clocked_prices GROUP BY symbol
    ) USING (symbol)
),
ends AS (
    SELECT lives.*, session,
        CASE WHEN step_next THEN 'price step'
            WHEN step_next IS NOT NULL THEN 'ticker reused'
            WHEN session < (SELECT max(session) FROM price_sessions) - {patience} THEN 'delisted' END AS ended_because
    FROM lives JOIN price_sessions ON date = last_date
),
measured AS (
    SELECT entity, count(*) FILTER (WHERE adj_close IS NOT NULL OR NOT adjusted) AS observations, arg_max(close, date) AS last_close,
        arg_min(close, date) FILTER (WHERE price_sessions.session >= ends.session - {quarter}) AS quarter_close
    FROM ends JOIN clocked_prices AS rows ON rows.symbol = ends.symbol AND date BETWEEN first_date AND last_date
    JOIN price_sessions USING (date)
    GROUP BY entity
)
SELECT entity, symbol, first_date, last_date, adjusted, ended_because, observations,
    CASE WHEN ended_because <> 'price step' AND (last_close < 1 OR last_close < 0.5 * quarter_close) THEN -0.3
        WHEN ended_because IS NOT NULL THEN 0 END::DOUBLE AS delisting_return
FROM ends JOIN measured USING (entity) ORDER BY entity;

-- Rows with dividends and splits taken into account: only ratios within an entity mean anything. volume in shares as reported;
-- dollar_volume in dollars of the day. A day without a trade, or whose close is stale, is not tradable, nor is the day of a
-- suspected split, a price step or an extreme move.
CREATE OR REPLACE VIEW adjusted_prices AS
SELECT entity, date, open * factor AS open, high * factor AS high, low * factor AS low, close * factor AS close, volume,
    close * volume AS dollar_volume, coalesce(volume > 0, true) AND NOT coalesce(marked, false) AS tradable
FROM (
    SELECT *, CASE WHEN adjusted THEN adj_close / close ELSE 1 END AS factor
    FROM clocked_prices JOIN entities USING (symbol) LEFT JOIN (
        SELECT symbol, date, true AS marked FROM price_events WHERE stale UNION
        SELECT symbol, date, true FROM corporate_actions WHERE action IN ('suspected_split', 'price_step', 'extreme_move')
    ) AS marks USING (symbol, date)
    WHERE date BETWEEN first_date AND last_date
)
WHERE factor IS NOT NULL;

-- Eligible at the close of a date: traded that day, with enough history, and where the source has volumes, with a median
-- dollar volume that is high enough (more than half the days reach it). No filter by price: most sources divide past closes by later
-- splits, so that a low one would know of them. Sums are of whole dollars, hence exact: they do not depend on where a history starts.
-- Where the source has no volumes, a hash of the first returns decides between symbols of the same age (rounded to a basis point,
-- so that a later adjustment of all closes does not move it), never the name.
CREATE OR REPLACE TABLE universe AS
WITH tie_breaks AS (
    SELECT symbol, hash(list_transform(range(1, len(closes)), lambda place: round(1e4 * ln(closes[place + 1] / closes[place])))) AS tie_break
    FROM (SELECT symbol, arg_min(close, date, least(21, {min_history})) AS closes FROM clocked_prices WHERE NOT {has_volume} GROUP BY symbol)
),
judged AS (
    SELECT entity, date, tradable, coalesce(tie_break, 0) AS tie_break, row_number() OVER history AS age,
        sum(TRY_CAST(dollar_volume AS BIGINT)) OVER recent AS traded,
        count(*) FILTER (WHERE dollar_volume >= {min_dollar_volume}) OVER recent AS liquid_days
    FROM adjusted_prices JOIN entities USING (entity) LEFT JOIN tie_breaks USING (symbol)
    WINDOW history AS (PARTITION BY entity ORDER BY date), recent AS (history ROWS {window} - 1 PRECEDING)
)
SELECT date, entity FROM judged
WHERE tradable AND age >= {min_history} AND (traded IS NULL OR liquid_days > {window} / 2.0)
QUALIFY row_number() OVER (PARTITION BY date ORDER BY traded DESC NULLS LAST, age DESC, tie_break, entity) <= {size}
ORDER BY date, entity;

-- Returns of raw closes (a dividend that is paid later does not move them), in percent, and volumes, in half decades, by month.
CREATE OR REPLACE TABLE price_histograms AS
SELECT 'return' AS quantity, date_trunc('month', date)::DATE AS month, least(greatest(round(100 * log_return), -5), 5)::TINYINT AS bin, count(*) AS n
FROM (SELECT date, ln(close / lag(close) OVER (PARTITION BY symbol ORDER BY date)) AS log_return FROM clocked_prices)
WHERE log_return IS NOT NULL GROUP BY ALL
UNION ALL
SELECT 'volume', date_trunc('month', date)::DATE, greatest(floor(2 * log10(volume)), 0)::TINYINT, count(*)
FROM clocked_prices WHERE volume > 0 GROUP BY ALL
