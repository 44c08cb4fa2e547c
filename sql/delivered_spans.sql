-- What a whole delivery covers of each symbol that lacks rows which are held, and how its oldest and newest rows compare with
-- those that are held of the same days: a ratio off 1 says that the prices were adjusted again since.
CREATE OR REPLACE TEMPORARY TABLE delivered_spans AS
WITH delivered AS (
    SELECT symbol, min(date) AS first, max(date) AS last
    FROM ({rows}) WHERE symbol IN (SELECT symbol FROM changed_keys WHERE withdrawn) GROUP BY symbol
),
twice AS (
    SELECT new.symbol, new.date, coalesce(new.adj_close, new.close) / coalesce(old.adj_close, old.close) AS ratio
    FROM incoming_prices AS new JOIN outgoing_prices AS old ON old.symbol = new.symbol AND old.date = new.date
    WHERE (old.broken | new.broken) & {hard} = 0
),
scaled AS (SELECT symbol, arg_min(ratio, date) AS first_ratio, arg_max(ratio, date) AS last_ratio FROM twice GROUP BY symbol)
SELECT symbol, first, last, coalesce(abs(ln(first_ratio)) > 1e-4, false) AS first_moved,
    coalesce(abs(ln(last_ratio)) > 1e-4, false) AS last_moved
FROM delivered LEFT JOIN scaled USING (symbol)
