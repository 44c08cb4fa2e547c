-- Who leads by dollar volume at each date among the symbols that were looked at so far.
CREATE OR REPLACE TEMPORARY TABLE best_contenders (
    date DATE, entity VARCHAR, traded HUGEINT, age BIGINT, tie_break UBIGINT
);

-- What decides between symbols of the same age where the source has no volumes: a hash of the first returns, rounded to a basis
-- point so that a later adjustment of all closes does not move it.
CREATE OR REPLACE TEMPORARY TABLE tie_breaks AS
SELECT symbol, hash(list_transform(range(1, len(closes)), lambda place: round(1e4 * ln(closes[place + 1] / closes[place])))) AS tie_break
FROM (
    SELECT symbol, arg_min(close, date, least(21, {min_history})) AS closes FROM prices
    WHERE NOT EXISTS (FROM prices WHERE volume IS NOT NULL)
    GROUP BY symbol
)
