-- The prices that are shown, on one clock, and their days.
CREATE OR REPLACE VIEW clocked_prices AS {clocked};

-- The days on which anything traded.
CREATE OR REPLACE TABLE price_sessions AS
SELECT date, (row_number() OVER (ORDER BY date))::INTEGER AS session FROM (SELECT DISTINCT date FROM clocked_prices) ORDER BY date;
