ALTER TABLE champions DROP COLUMN probability_better;
ALTER TABLE champions DROP COLUMN common_days;
ALTER TABLE champions ADD COLUMN t_baseline DOUBLE;
ALTER TABLE champions ADD COLUMN t_champion DOUBLE;
