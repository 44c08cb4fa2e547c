-- The sound rows of the active view. An open, high, low or adj_close that is no price is NULL; volume is in shares as reported.
CREATE OR REPLACE VIEW prices AS
SELECT symbol, date,
    CASE WHEN open > 0 AND open < 1e12 THEN open END AS open,
    CASE WHEN high > 0 AND high < 1e12 THEN high END AS high,
    CASE WHEN low > 0 AND low < 1e12 THEN low END AS low,
    close, volume, CASE WHEN adj_close > 0 AND adj_close < 1e15 THEN adj_close END AS adj_close
FROM seen_prices
WHERE broken & {hard} = 0
    AND date NOT IN (SELECT date FROM dropped_sessions WHERE feed_id = {feed_id} AND revision = {revision})
