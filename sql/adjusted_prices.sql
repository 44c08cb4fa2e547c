CREATE OR REPLACE VIEW adjusted_prices AS
{adjusted}
