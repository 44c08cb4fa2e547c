-- All rows of the active feed as they were at the active revision, good and bad.
CREATE OR REPLACE VIEW seen_prices AS
SELECT symbol, date, open, high, low, close, volume, adj_close, broken, unreadable, valid_from
FROM price_history JOIN active_view USING (feed_id)
WHERE valid_from <= revision AND (valid_to IS NULL OR valid_to > revision);

-- The sound ones. An open, high, low or adj_close that is no price is NULL; volume is in shares as reported.
CREATE OR REPLACE VIEW prices AS
SELECT symbol, date,
    CASE WHEN open > 0 AND open < 1e12 THEN open END AS open,
    CASE WHEN high > 0 AND high < 1e12 THEN high END AS high,
    CASE WHEN low > 0 AND low < 1e12 THEN low END AS low,
    close, volume, CASE WHEN adj_close > 0 AND adj_close < 1e15 THEN adj_close END AS adj_close
FROM seen_prices WHERE broken & {hard} = 0;

-- Those that broke a hard rule: the first rule that each broke, and all of them.
CREATE OR REPLACE VIEW quarantined_prices AS
SELECT * EXCLUDE (broken), rules[1] AS rule
FROM (SELECT *, list_filter([{names}], lambda x: x IS NOT NULL) AS rules FROM seen_prices WHERE broken & {hard} <> 0);

-- Every version of every row of every feed, with the revisions in which it was valid.
CREATE OR REPLACE VIEW raw_prices AS
SELECT feed, price_history.* EXCLUDE (feed_id) FROM price_history JOIN feeds USING (feed_id)
