SELECT symbol, clock_date AS date, open, high, low, close, volume, adj_close
FROM prices
JOIN (SELECT symbol, calendar FROM symbol_calendars WHERE feed_id = {feed_id}) USING (symbol)
JOIN (SELECT calendar, date, clock_date FROM clock_sessions WHERE feed_id = {feed_id}) USING (calendar, date)
QUALIFY row_number() OVER (PARTITION BY symbol, clock_date ORDER BY date DESC) = 1
