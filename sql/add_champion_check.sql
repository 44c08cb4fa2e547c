INSERT INTO main.champion_checks
    (checkpoint, data_version, incumbent, name, passed, blocking, detail, created_at)
VALUES
    ($checkpoint, $data_version, $incumbent, $name, $passed, $blocking, $detail, $created_at)
