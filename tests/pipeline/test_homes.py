"""A home over the years: upgraded, saved and restored, and what is removed when a disk fills and what never is."""

import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import duckdb
import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline import warehouse
from finjepa_pipeline.publishing.gate import Champion, current_champion
from finjepa_pipeline.retention import clean, living
from finjepa_pipeline.runs import locked
from finjepa_pipeline.settings import Settings
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


BACKUP = Path(__file__).resolve().parents[2] / "deploy" / "backup.py"
HOLD = """
import duckdb, sys, time
con = duckdb.connect(sys.argv[1])
con.execute("CREATE TABLE champions AS SELECT 'aaaa' AS checkpoint")
print("held", flush=True)
time.sleep(2)
con.execute("INSERT INTO champions VALUES ('bbbb')")
con.close()
"""


def backup(home: Path, action: str, archive: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BACKUP, action, archive]
    return subprocess.run(command, env=os.environ | {"FINJEPA_HOME": str(home)}, capture_output=True, text=True)


def is_refused(done: subprocess.CompletedProcess[str]) -> bool:
    return (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_a_backup_waits_for_who_writes_and_comes_back_whole_or_is_refused_in_one_line(tmp_path):
    home, archive, other = tmp_path / "home", tmp_path / "backup.tar.gz", tmp_path / "other"
    for name in ("releases/v1", "releases/.tmp-half", "panels"):
        (home / name).mkdir(parents=True)
    (home / "releases" / "v1" / "README.md").write_text("a card")
    assert is_refused(backup(home, "save", archive))  # there is nothing to save
    assert not archive.exists()
    with subprocess.Popen([sys.executable, "-c", HOLD, home / "warehouse.duckdb"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"held\n"
        saved = backup(home, "save", archive)
    assert saved.returncode == 0, saved.stderr
    assert backup(other, "restore", archive).returncode == 0
    with duckdb.connect(str(other / "warehouse.duckdb"), read_only=True) as con:
        assert con.execute("FROM champions ORDER BY ALL").fetchall() == [("aaaa",), ("bbbb",)]
    found = [str(path.relative_to(other)) for path in sorted(other.rglob("*"))]
    assert found == ["releases", "releases/v1", "releases/v1/README.md", "warehouse.duckdb"]
    assert "is not empty" in backup(other, "restore", archive).stderr
    archive.write_bytes(archive.read_bytes()[:-200])
    assert is_refused(backup(tmp_path / "third", "restore", archive))
    assert not (tmp_path / "third").exists()


KB = 1000
FIRST = datetime.date(2026, 11, 2)


def new_home(folder: Path) -> Settings:
    settings = Settings(home=folder / "home").ensure()
    with Warehouse.from_settings(settings).connect():
        pass
    return settings


@pytest.fixture
def home(tmp_path) -> Settings:
    return new_home(tmp_path)


@pytest.fixture
def instance(home):
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        yield instance


def write(path: Path, kilobytes: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(int(KB * kilobytes)))


def name_of(number: int) -> str:
    return f"{number:016x}"


def night(home: Settings, instance: dg.DagsterInstance, number: int, promoted: bool, keep: int = 3) -> None:
    """What a night leaves, small: a panel, a training, a checkpoint, a report, a decision, a run."""
    name, day = name_of(number), FIRST + datetime.timedelta(days=number)
    checkpoint, run = home.checkpoints / name, home.checkpoints / f"{name}.run"
    write(checkpoint / "model.safetensors", 100)
    (checkpoint / "lineage.json").write_text(json.dumps({"night": number}))
    for state in ("trainer_state.pt", "best.pt"):
        write(run / state, 200)
    write(run / "metrics.jsonl", 5)
    (home.checkpoints / "current.json").write_text(json.dumps({"checkpoint": name}))
    write(home.panels / f"p{number}" / "features.npy", 300)
    (home.panels / "current.json").write_text(json.dumps({"panel": f"p{number}"}))
    write(home.reports / f"{name}-v{number}" / "index.html", 50)
    write(home.reports / "decisions" / f"{day}.html", 2)
    with Warehouse.from_settings(home).connect() as con:
        champion = current_champion(con)
        if promoted:
            write(home.releases / f"v{number}" / "model.safetensors", 100)
            champion = Champion(name, "mppi")
        con.execute(
            "INSERT INTO main.champions (checkpoint, data_version, verdict, reasons, strategy, created_at) "
            "VALUES (?, 'v', ?, 'because', 'mppi', ?)",
            [name, "promoted" if promoted else "kept", day],
        )
        assert champion is not None
        con.execute(
            "INSERT INTO main.decision_portfolios (date, checkpoint, planner, data_version, feed, book, wealth, peak, cash, "
            "hedge_held) VALUES (?, ?, 'mppi', 'v', 'feed', 'champion', 1, 1, 1, 0)",
            [day, champion.checkpoint],
        )
    run = instance.create_run_for_job(dg.job(name="nightly")(lambda: None), status=dg.DagsterRunStatus.SUCCESS)
    instance.report_engine_event("a night", run)
    for place in home.home.rglob("*"):  # the nights before are older
        if place.exists() and name not in str(place):
            os.utime(place, (place.lstat().st_mtime - 86_400,) * 2, follow_symlinks=False)
    with Warehouse.from_settings(home).connect(read_only=True) as con:
        clean(home, con, instance, keep)


@pytest.fixture(scope="module")
def six_nights(tmp_path_factory) -> Path:
    """A home in which nothing was removed yet."""
    home = new_home(tmp_path_factory.mktemp("six"))
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        for number in range(6):
            night(home, instance, number, number == 0, keep=14)
    return home.home


@pytest.fixture
def filled(six_nights, home):
    """A copy of it, its instance, and a connection to its warehouse."""
    shutil.copytree(six_nights, home.home, dirs_exist_ok=True)
    with (
        dg.DagsterInstance.from_config(str(home.dagster)) as instance,
        Warehouse.from_settings(home).connect(read_only=True) as con,
    ):
        yield home, instance, con


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def checkpoints(home: Settings) -> set[str]:
    return {path.name for path in home.checkpoints.iterdir() if path.is_dir() and path.suffix != ".run"}


def test_many_nights_stay_small_and_lose_nothing_that_is_needed(home, instance):
    nights, promoted, sizes = 10, {0, 3, 5}, []
    for number in range(nights):
        night(home, instance, number, number in promoted, keep=2)
        sizes.append(size(home.home) - size(home.releases) - size(home.reports / "decisions"))
    assert checkpoints(home) == {name_of(number) for number in (*promoted, 7, 8, 9)}  # the current one and two others
    assert len(list(home.releases.iterdir())) == 3
    assert len(list((home.reports / "decisions").iterdir())) == nights
    # every configuration that was tried still counts, and can be made again from its lineage
    assert len(list(home.checkpoints.glob("*.run/metrics.jsonl"))) == nights
    for number in range(nights):
        kept = home.checkpoints / name_of(number)
        folder = kept if kept.is_dir() else kept.with_name(f"{kept.name}.run")
        assert json.loads((folder / "lineage.json").read_text()) == {"night": number}
    assert {path.name for path in home.panels.iterdir() if path.is_dir()} == {"p8", "p9"}
    assert len(instance.get_runs()) == len(list((home.dagster / "history" / "runs").glob("*-*.db"))) == 8
    # what grows are the curves of trainings, and the rows of the tables
    assert sizes[9] - sizes[7] < 2 * 150 * KB, sizes
    with Warehouse.from_settings(home).connect(read_only=True) as con:
        assert clean(home, con, instance, 2).removals == []


def test_a_dry_run_removes_nothing_and_reports_the_same(filled):
    home, instance, con = filled
    before = {path for path in home.home.rglob("*") if "dagster" not in path.parts}
    would = clean(home, con, instance, 1, dry_run=True)
    assert {path for path in home.home.rglob("*") if "dagster" not in path.parts} == before
    done = clean(home, con, instance, 1)
    assert would.removals == done.removals != []
    assert all(not Path(one.place).exists() for one in done.removals if isinstance(one.place, Path))
    assert sum(one.bytes for one in done.removals) > 0


def test_nothing_is_removed_while_a_command_uses_the_home(filled):
    home, instance, con = filled
    before = sorted(home.checkpoints.rglob("*"))
    with locked(home.dagster / "commands", "other"):
        assert living(home, instance) is not None
        assert living(home, instance, "other") is None
        with pytest.raises(FinJEPAError, match="nothing was removed"):
            clean(home, con, instance, 1)
        assert sorted(home.checkpoints.rglob("*")) == before
    assert clean(home, con, instance, 1).removals
    with pytest.raises(FinJEPAError, match="at least 1"):
        clean(home, con, instance, 0)


def test_what_is_named_or_swept_or_the_one_champion_stays(filled):
    home, instance, con = filled
    home.nightly_config.write_text(f"ops: {{planner_backtests: {{config: {{utility: 'x({name_of(1)})'}}}}}}")

    @dg.asset(name="model_sweep")
    def model_sweep() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata={"checkpoints": dg.MetadataValue.json({"seed 0": name_of(2)})})

    assert dg.materialize([model_sweep], instance=instance).success
    clean(home, con, instance, 1)
    assert checkpoints(home) == {name_of(number) for number in (0, 1, 2, 4, 5)}


def test_the_state_of_the_newest_interrupted_training_stays_and_what_a_killed_process_left_goes(home, instance):
    for number in range(3):
        write(home.checkpoints / f"{name_of(number)}.run" / "trainer_state.pt", 10)
        os.utime(home.checkpoints / f"{name_of(number)}.run", (number, number))
    old, young, kept = home.panels / ".tmp-old", home.releases / ".tmp-young", home.releases / "2022-12-28-c0ffee"
    for folder in (old, young, kept):
        write(folder / "half", 1)
    for folder in (old, kept):
        os.utime(folder, (0, 0))
    with Warehouse.from_settings(home).connect(read_only=True) as con:
        clean(home, con, instance, 1)
    assert [path.parent.name for path in home.checkpoints.rglob("*.pt")] == [f"{name_of(2)}.run"]
    assert len(list(home.checkpoints.glob("*.run"))) == 3
    assert (old.exists(), young.exists(), kept.exists()) == (False, True, True)
