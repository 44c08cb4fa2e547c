-- Which columns hold anything at all; the first value that is found answers.
SELECT
    EXISTS (FROM main.adjusted_prices WHERE open IS NOT NULL) AS open,
    EXISTS (FROM main.adjusted_prices WHERE high IS NOT NULL) AS high,
    EXISTS (FROM main.adjusted_prices WHERE low IS NOT NULL) AS low,
    EXISTS (FROM main.adjusted_prices WHERE volume IS NOT NULL) AS volume,
    EXISTS (FROM main.adjusted_prices WHERE dollar_volume IS NOT NULL) AS dollar_volume
