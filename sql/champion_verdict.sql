-- The last verdict on a challenger, on the same data against the same champion.
SELECT verdict, reasons
FROM main.champions
WHERE checkpoint = $checkpoint AND data_version = $data_version AND incumbent IS NOT DISTINCT FROM $incumbent
ORDER BY created_at DESC, rowid DESC
LIMIT 1
