"""A warehouse of any earlier version becomes one of this version, and keeps its rows."""

from pathlib import Path

import duckdb
import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline import migrations
from finjepa_pipeline.migrations import migrate, newest_version, schema_version
from finjepa_pipeline.sql_files import sql

VERSION_1 = Path(__file__).parent / "warehouse_version_1.sql"
SCHEMAS = ("price_schema", "derived_schema", "backtest_schema", "champions", "champion_checks", "decisions", "releases")


def columns(con: duckdb.DuckDBPyConnection) -> dict[str, set[tuple[str, str]]]:
    found = con.execute("SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal").fetchall()
    tables: dict[str, set[tuple[str, str]]] = {}
    for table, column, kind in found:
        tables.setdefault(table, set()).add((column, kind))
    checks = "SELECT table_name, constraint_text, 'check' FROM duckdb_constraints() WHERE constraint_type = 'CHECK'"
    for table, text, kind in con.execute(checks).fetchall():
        tables[table].add((text, kind))
    return tables


def create_all(con: duckdb.DuckDBPyConnection) -> None:
    for name in SCHEMAS:
        con.execute(sql(name).format(temporary="") if name == "derived_schema" else sql(name))


def test_the_first_version_becomes_the_newest_and_keeps_its_rows():
    with duckdb.connect() as old, duckdb.connect() as new:
        old.execute(VERSION_1.read_text())
        rows = {
            table: old.execute(f"SELECT count(*) FROM main.{table}").fetchall()
            for table in ("champions", "decisions", "releases", "backtest_returns", "backtest_trials", "leaderboard")
        }
        assert all(count[0][0] > 0 for count in rows.values())
        assert migrate(old) == 1
        create_all(old)
        migrate(new)
        create_all(new)
        assert columns(old) == columns(new)
        assert {table: old.execute(f"SELECT count(*) FROM main.{table}").fetchall() for table in rows} == rows
        query = "SELECT start_date::VARCHAR, end_date::VARCHAR FROM backtest_trials"  # as the stored returns have them
        walked = "SELECT min(date)::VARCHAR, max(date)::VARCHAR FROM backtest_returns"
        assert old.execute(query).fetchall() == old.execute(walked).fetchall()
        assert schema_version(old) == newest_version()
        assert migrate(old) == newest_version()


def test_trials_of_before_are_compared_with_one_over_n_and_their_leaderboard_is_measured_again():
    with duckdb.connect() as con:
        con.execute(VERSION_1.read_text())
        for day, mine, benchmark in ((27, 0.02, 0.01), (28, 0.009, 0.005)):
            row = "INSERT INTO backtest_returns BY NAME SELECT * REPLACE ({} AS strategy, {} AS net_return, {} AS date) FROM kept"
            con.execute("CREATE OR REPLACE TEMP TABLE kept AS FROM backtest_returns WHERE strategy = 'mppi' LIMIT 1")
            date = f"DATE '2022-12-{day}'"
            con.execute(row.format("'equal_weight'", benchmark, date))
            if day == 27:
                con.execute(row.format("'mppi'", mine, date))
        con.execute("ALTER TABLE leaderboard ADD COLUMN dsr DOUBLE DEFAULT 0.99")
        migrate(con)
        create_all(con)
        [(ratio,)] = con.execute("SELECT excess_sharpe FROM backtest_trials").fetchall()
        assert ratio == pytest.approx(0.007 / (0.003 * 2**0.5), rel=1e-9)  # of .010 and .004
        assert con.execute("SELECT dsr FROM leaderboard").fetchall() == [(None,)]


def test_numbers_of_migrations_are_without_a_gap():
    numbers = [number for number, _ in migrations.migrations()]
    assert numbers == list(range(2, newest_version() + 1))


def test_a_migration_that_fails_changes_nothing(monkeypatch):
    broken = (
        *migrations.migrations(),
        (newest_version() + 1, "ALTER TABLE main.champions ADD COLUMN x INTEGER; SELECT 1/'a'"),
    )
    with duckdb.connect() as con:
        con.execute(VERSION_1.read_text())
        before = columns(con)
        monkeypatch.setattr(migrations, "migrations", lambda: broken)
        with pytest.raises(FinJEPAError, match="nothing was changed"):
            migrate(con)
        assert columns(con) == before


def test_a_warehouse_of_the_future_is_refused():
    with duckdb.connect() as con:
        migrate(con)
        con.execute("INSERT INTO main.schema_version VALUES (999, now()::TIMESTAMP)")
        with pytest.raises(FinJEPAError, match="install the newer one"):
            migrate(con)
