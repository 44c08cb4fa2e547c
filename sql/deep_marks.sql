-- Companies and marks of the symbols whose past moved, as far as the universe before {since} sees them.
SELECT entity, first_date, adjusted::VARCHAR AS mark
FROM entities SEMI JOIN deep_symbols USING (symbol) WHERE first_date < DATE '{since}'
UNION ALL
SELECT symbol, date, action
FROM corporate_actions SEMI JOIN deep_symbols USING (symbol) WHERE date < DATE '{since}' AND action IN ('suspected_split', 'price_step', 'extreme_move')
ORDER BY ALL
