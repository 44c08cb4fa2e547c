-- Version 1 decided every night from cash. Its decisions stay, with nothing known of what was held.
ALTER TABLE IF EXISTS main.decisions ADD COLUMN IF NOT EXISTS held DOUBLE;
