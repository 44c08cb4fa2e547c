INSERT INTO main.champions
    (checkpoint, data_version, verdict, reasons, strategy, incumbent, probability_better, common_days, created_at)
VALUES
    ($checkpoint, $data_version, $verdict, $reasons, $strategy, $incumbent, $probability_better, $common_days, $created_at)
