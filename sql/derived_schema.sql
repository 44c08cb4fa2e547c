-- What is derived from the active view.
-- The sessions of the active view: the days on which anything of it traded.
CREATE OR REPLACE {temporary} TABLE price_sessions (date DATE, session INTEGER, rows INTEGER);

-- The rows at which something happens to a symbol, with what it was before: first rows, gaps, factor steps, jumps.
CREATE OR REPLACE {temporary} TABLE price_events (
    symbol VARCHAR, date DATE, date_before DATE, gap INTEGER, close_ratio DOUBLE, factor_ratio DOUBLE,
    return_ratio DOUBLE, volume_ratio DOUBLE
);

-- Rows whose close has not moved for five sessions.
CREATE OR REPLACE {temporary} TABLE stale_prices (symbol VARCHAR, date DATE);

-- action: dividend (value: share of the close before), split (value: new shares for an old one), suspected_split (the
-- same, seen in the closes but not in the factor: nothing is repaired), unexplained_jump, extreme_move (value: return),
-- price_step (value: return that nobody is paid: the entity ends before it).
CREATE OR REPLACE {temporary} TABLE corporate_actions (symbol VARCHAR, date DATE, action VARCHAR, value DOUBLE);

-- A company behind a symbol, which after ticker reuse is symbol#2. ended_because is NULL while it trades.
-- delisting_return: what a holder gets beyond the last close when it ends. observations: its rows in adjusted_prices.
CREATE OR REPLACE {temporary} TABLE entities (
    entity VARCHAR, symbol VARCHAR, first_date DATE, last_date DATE, adjusted BOOLEAN,
    ended_because VARCHAR, delisting_return DOUBLE, observations BIGINT
);

-- Who is eligible for a decision at the close of a date, from what was known by then.
CREATE OR REPLACE {temporary} TABLE universe (date DATE, entity VARCHAR);

-- How the returns of raw closes and the volumes of a day are distributed: bins of price_histograms.sql. A day may have several
-- rows for a bin.
CREATE OR REPLACE {temporary} TABLE price_histograms (date DATE, quantity VARCHAR, bin UTINYINT, n BIGINT);
