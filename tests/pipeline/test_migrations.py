"""A warehouse of an earlier version becomes one of this version and keeps its rows, or is refused and left as it is."""

from pathlib import Path

import duckdb
import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline import warehouse
from finjepa_pipeline.warehouse import OLDEST_VERSION, Warehouse, migrate, newest_version, schema_version

CHAMPION = "INSERT INTO champions (checkpoint, data_version, verdict, reasons) VALUES ('aaaa', 'data1', 'promoted', '')"


def versions(con: duckdb.DuckDBPyConnection) -> list[int]:
    return [number for (number,) in con.execute("SELECT version FROM schema_version ORDER BY version").fetchall()]


def test_migrations_run_once_in_their_order_and_keep_rows_and_one_that_fails_changes_nothing(monkeypatch, tmp_path):
    home = Warehouse(path=str(tmp_path / "warehouse.duckdb"))
    with home.connect() as con:
        assert schema_version(con) == newest_version()
        con.execute(CHAMPION)
    before = newest_version()
    sound = (before + 1, "ALTER TABLE champions ADD COLUMN x INTEGER DEFAULT 7")
    broken = (before + 2, "ALTER TABLE champions ADD COLUMN y INTEGER; SELECT 1 / 'a'")
    monkeypatch.setattr(warehouse, "migrations", lambda: (sound, broken))
    for _ in range(2):
        with (
            pytest.raises(FinJEPAError, match=f"upgraded to version {before + 2} .*tables are as they were"),
            home.connect(),
        ):
            pass
        with duckdb.connect(home.path) as con:
            assert versions(con) == [before, before + 1]
            [(*_, added)] = con.execute("FROM champions").fetchall()
            assert added == 7
    monkeypatch.setattr(warehouse, "migrations", lambda: (sound,))
    with home.connect() as con:
        assert versions(con) == [before, before + 1]
    with duckdb.connect() as new:  # the tables of an empty home are those of the newest version
        migrate(new)
        assert versions(new) == [before + 1]


@pytest.mark.parametrize(
    ("made_by", "says"),
    [
        (
            "CREATE TABLE schema_version AS SELECT 4 AS version; CREATE TABLE champions AS SELECT 'aaaa' AS checkpoint",
            "older",
        ),
        ("CREATE TABLE revisions (revision INTEGER)", "older"),  # the first version stored no number
        ("CREATE TABLE customers (name VARCHAR)", "another program"),
        ("CREATE TABLE schema_version AS SELECT 999 AS version", "install the newer one"),
    ],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_what_cannot_be_upgraded_is_refused_in_one_line_and_left_as_it_is(made_by, says, read_only, tmp_path: Path):
    home = Warehouse(path=str(tmp_path / "warehouse.duckdb"))
    with duckdb.connect(home.path) as con:
        con.execute(made_by)
        tables = con.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()
    with pytest.raises(FinJEPAError, match=says) as error, home.connect(read_only):
        pass
    assert "\n" not in str(error.value)
    with duckdb.connect(home.path) as con:
        assert con.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall() == tables


def test_numbers_of_migrations_are_without_a_gap():
    numbers = [number for number, _ in warehouse.migrations()]
    assert numbers == list(range(OLDEST_VERSION + 1, newest_version() + 1))
