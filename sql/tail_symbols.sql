-- Who has to be looked at, and how. From {since} on everything is made again, from the rows after {tail}; of a symbol whose
-- past moved, whose tail is too thin to look back in, or that was several companies, all rows are read (deep_symbols).
CREATE OR REPLACE TEMPORARY TABLE tail_counts AS
SELECT symbol, count(*) FILTER (WHERE date < DATE '{since}') AS context_rows, max(date) AS last_date,
    count(*) FILTER (WHERE adj_close IS NOT NULL) AS priced_rows, count(*) AS rows
FROM prices WHERE date >= DATE '{tail}' GROUP BY symbol;

CREATE OR REPLACE TEMPORARY TABLE known_symbols AS
SELECT symbol, count(*) AS lives, min(first_date) AS first_date, sum(observations) AS observations,
    bool_or(adjusted) AS was_adjusted, bool_or(ended_because IS NULL) AS alive
FROM entities GROUP BY symbol;

CREATE OR REPLACE TEMPORARY TABLE block_symbols AS
WITH moved AS (
    SELECT symbol, min(date) AS since, sum(CASE WHEN came THEN 1 ELSE -1 END) AS rows,
        sum(CASE WHEN came THEN 1 ELSE -1 END) FILTER (WHERE priced) AS priced_rows
    FROM changed_prices GROUP BY symbol
)
SELECT symbol, coalesce(was_adjusted, false) AS was_adjusted,
    coalesce(moved.since < DATE '{since}', false) OR coalesce(lives > 1, false)
        OR coalesce(context_rows, 0) < {context_rows} AND coalesce(first_date < DATE '{tail}', false) AS deep,
    CASE WHEN deep THEN 0 ELSE coalesce(observations, 0) - (
        CASE WHEN was_adjusted THEN coalesce(tail.priced_rows, 0) - coalesce(moved.priced_rows, 0)
            ELSE coalesce(tail.rows, 0) - coalesce(moved.rows, 0) END
    ) END AS rows_before
FROM known_symbols FULL JOIN tail_counts AS tail USING (symbol) FULL JOIN moved USING (symbol)
WHERE coalesce(alive, true) OR tail.last_date >= DATE '{since}' OR moved.since IS NOT NULL;

CREATE OR REPLACE TEMPORARY TABLE deep_symbols AS SELECT symbol FROM block_symbols WHERE deep
