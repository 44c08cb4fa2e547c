"""A warehouse of any earlier version becomes one of this version, and keeps its rows."""

from pathlib import Path

import duckdb
import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline import warehouse
from finjepa_pipeline.warehouse import Warehouse, migrate, migrations, newest_version, schema_version

VERSION_1 = (Path(__file__).parent / "warehouse_version_1.sql").read_text()
KEPT = ("champions", "decisions", "releases", "backtest_returns", "backtest_trials", "leaderboard")


def columns(con: duckdb.DuckDBPyConnection) -> dict[str, set[tuple[str, str]]]:
    """Columns with types, and CHECK constraints, by table."""
    tables: dict[str, set[tuple[str, str]]] = {}
    for table, column, kind in con.execute(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal UNION ALL "
        "SELECT table_name, constraint_text, 'check' FROM duckdb_constraints() WHERE constraint_type = 'CHECK'"
    ).fetchall():
        tables.setdefault(table, set()).add((column, kind))
    return tables


def counts(con: duckdb.DuckDBPyConnection) -> list[int]:
    return [con.execute(f"SELECT count(*) FROM main.{table}").fetchall()[0][0] for table in KEPT]


def write_home_of(version: int, file: Path) -> list[int]:
    """A warehouse as a version left it; returns how many rows its tables have."""
    with duckdb.connect(str(file)) as con:
        con.execute(VERSION_1)
        for number, statements in migrations():
            if number <= version:
                con.execute(statements)
        if version > 1:  # the first one stored no number
            con.execute("CREATE TABLE schema_version (version INTEGER NOT NULL, migrated_at TIMESTAMP NOT NULL)")
            con.execute("INSERT INTO schema_version VALUES (?, now()::TIMESTAMP)", [version])
        return counts(con)


@pytest.mark.parametrize("version", range(1, newest_version()))
def test_a_home_of_each_earlier_version_is_upgraded_when_it_is_opened_and_keeps_its_rows(version, tmp_path):
    rows = write_home_of(version, tmp_path / "old.duckdb")
    assert all(rows)
    with Warehouse(path=str(tmp_path / "new.duckdb")).connect() as new:
        expected = columns(new)
        assert schema_version(new) == newest_version()
    for _ in range(2):  # the second opening finds nothing to do
        with Warehouse(path=str(tmp_path / "old.duckdb")).connect() as old:
            found = columns(old)
            assert {table: found[table] for table in expected} == expected
            assert counts(old) == rows
            recorded = [number for (number,) in old.execute("SELECT version FROM schema_version").fetchall()]
            assert recorded == list(range(max(version, 2), newest_version() + 1))


def test_configurations_of_before_are_compared_with_one_over_n_and_their_leaderboard_is_computed_again():
    with duckdb.connect() as con:
        con.execute(VERSION_1)
        con.execute("CREATE TEMP TABLE kept AS FROM backtest_returns WHERE strategy = 'mppi' LIMIT 1")
        new = "{} AS strategy, {} AS net_return, DATE '{}' AS date"
        row = f"INSERT INTO backtest_returns BY NAME SELECT * REPLACE ({new}) FROM kept"
        con.execute(row.format("'equal_weight'", 0.01, "2022-12-27"))
        con.execute(row.format("'mppi'", 0.02, "2022-12-27"))
        con.execute(row.format("'equal_weight'", 0.005, "2022-12-28"))
        con.execute("ALTER TABLE leaderboard ADD COLUMN dsr DOUBLE DEFAULT 0.99")
        migrate(con)
        [(ratio, start, end)] = con.execute(
            "SELECT excess_sharpe, start_date::VARCHAR, end_date::VARCHAR FROM backtest_trials"
        ).fetchall()
        assert ratio == pytest.approx(0.007 / (0.003 * 2**0.5), rel=1e-9)  # of .010 and .004
        assert (start, end) == ("2022-12-27", "2022-12-28")
        assert con.execute("SELECT dsr FROM leaderboard").fetchall() == [(None,)]


def test_a_migration_that_fails_changes_nothing_and_the_next_opening_goes_on_from_there(monkeypatch):
    broken = (newest_version() + 1, "ALTER TABLE main.champions ADD COLUMN x INTEGER; SELECT 1/'a'")
    listed = (*migrations(), broken)
    with duckdb.connect() as con, duckdb.connect() as sound:
        for one in (con, sound):
            one.execute(VERSION_1)
        migrate(sound)
        with monkeypatch.context() as patch:
            patch.setattr(warehouse, "migrations", lambda: listed)
            with pytest.raises(FinJEPAError, match=f"upgraded to version {broken[0]} .*tables are as they were"):
                migrate(con)
        assert columns(con)["champions"] == columns(sound)["champions"]
        assert migrate(con) == newest_version()
        assert columns(con) == columns(sound)


def test_numbers_of_migrations_are_without_a_gap():
    assert [number for number, _ in migrations()] == list(range(2, newest_version() + 1))


def test_a_warehouse_of_a_newer_version_and_one_of_another_program_are_refused():
    with duckdb.connect() as newer, duckdb.connect() as foreign:
        migrate(newer)
        newer.execute("INSERT INTO main.schema_version VALUES (999, now()::TIMESTAMP)")
        foreign.execute("CREATE TABLE customers (name VARCHAR)")
        with pytest.raises(FinJEPAError, match="install the newer one"):
            migrate(newer)
        with pytest.raises(FinJEPAError, match="another program"):
            migrate(foreign)


def test_every_revision_of_prices_is_shown_as_before():
    """AAA is restated with revision 2 and withdrawn with 4; BBB's session is late, comes back with 3 and is thin in 4."""
    with duckdb.connect() as con:
        con.execute(VERSION_1)
        con.execute("INSERT INTO feeds VALUES (7, 'files:/x', 'files', '{}'), (8, 'files:/y', 'files', '{}')")
        for revision, feed in ((1, 7), (2, 7), (3, 7), (4, 7), (5, 8)):
            con.execute("INSERT INTO revisions (revision, feed_id, data_version) VALUES (?, ?, 'v')", [revision, feed])
        row = "INSERT INTO raw_price_versions (feed_id, first_revision, symbol, date, close, volume, broken) VALUES "
        con.execute(f"{row} (7, 1, 'AAA', '2020-01-02', 10, 5, 0), (7, 2, 'AAA', '2020-01-02', 11, 5, 0)")
        con.execute(f"{row} (7, 1, 'BBB', '2020-01-03', 20, 5, 0), (7, 1, 'CCC', '2020-01-03', -1, 5, 16)")
        con.execute(f"{row} (8, 5, 'AAA', '2020-01-02', 99, 5, 0)")
        con.execute("INSERT INTO raw_price_ends VALUES (7, 1, 'AAA', '2020-01-02', 1), (7, 2, 'AAA', '2020-01-02', 3)")
        for revision, rule in ((1, "late_session"), (2, "late_session"), (4, "thin_session")):
            con.execute("INSERT INTO dropped_sessions VALUES (7, ?, '2020-01-03', ?)", [revision, rule])
        con.execute("INSERT INTO active_view VALUES (7, 1)")
        migrate(con)
        shown = {}
        for revision in (1, 2, 3, 4):
            con.execute("UPDATE active_view SET revision = ?", [revision])
            good = con.execute("SELECT symbol, close FROM prices ORDER BY ALL").fetchall()
            bad = con.execute("SELECT symbol, rules FROM quarantined_prices ORDER BY ALL").fetchall()
            shown[revision] = (good, bad)
        late, negative = ["late_session"], ["close_not_positive"]
        assert shown[1] == ([("AAA", 10)], [("BBB", late), ("CCC", negative + late)])
        assert shown[2] == ([("AAA", 11)], [("BBB", late), ("CCC", negative + late)])
        assert shown[3] == ([("AAA", 11), ("BBB", 20)], [("CCC", negative)])
        assert shown[4] == ([], [("BBB", ["thin_session"]), ("CCC", [*negative, "thin_session"])])
        con.execute("UPDATE active_view SET feed_id = 8, revision = 5")
        assert con.execute("SELECT symbol, close FROM prices").fetchall() == [("AAA", 99)]
