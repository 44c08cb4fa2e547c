"""What the user or the machine has caused is named with the way out; a fault of the product is reported as one."""

import errno
import os
import resource
import sqlite3
import subprocess
import sys

import dagster as dg
import duckdb
import pytest
import torch

from finjepa_model.errors import FinJEPAError
from finjepa_model.training.run_folder import STATE_FILE, Best, load_state, save_state
from finjepa_pipeline import interrupts
from finjepa_pipeline.causes import explained
from finjepa_pipeline.cli import one_line
from finjepa_pipeline.compute import ProcessDiedError
from finjepa_pipeline.prices.scan import plain
from finjepa_pipeline.runner import open_instance
from finjepa_pipeline.runs import CRASH_RETRIES, final
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse


def raised(function, *arguments) -> BaseException:
    try:
        function(*arguments)
    except BaseException as error:
        return error
    raise AssertionError("it went well")


def wrapped(error: BaseException) -> BaseException:
    """As a library or Dagster wraps what it has caught."""
    outer = RuntimeError("step failed")
    outer.__cause__ = error
    return outer


def corrupt_runs(folder):
    (folder / "runs.db").write_bytes(b"no database" * 100)
    return raised(lambda: sqlite3.connect(folder / "runs.db").execute("SELECT * FROM runs"))


def locked_runs(folder):
    sqlite3.connect(folder / "runs.db").execute("CREATE TABLE runs (a)")
    with sqlite3.connect(folder / "runs.db") as holder:
        holder.execute("BEGIN EXCLUSIVE")
        return raised(lambda: sqlite3.connect(folder / "runs.db", timeout=0).execute("INSERT INTO runs VALUES (1)"))


def damaged_warehouse(folder):
    with duckdb.connect(str(folder / "w.duckdb")) as con:
        con.execute("CREATE TABLE t AS SELECT range AS a, hash(range) AS b FROM range(300000)")
    content = bytearray((folder / "w.duckdb").read_bytes())
    content[20_000:-20_000] = os.urandom(len(content) - 40_000)
    (folder / "w.duckdb").write_bytes(content)
    return raised(lambda: duckdb.connect(str(folder / "w.duckdb")).execute("SELECT sum(a), max(b) FROM t").fetchall())


def too_little_memory(folder):
    con = duckdb.connect(config={"memory_limit": "10MB", "temp_directory": ""})
    query = "SELECT a.range FROM range(9999999) a JOIN range(9999999) b USING (range) ORDER BY 1"
    return raised(lambda: con.execute(query).fetchall())


@dg.asset
@final
def crashing() -> None:
    raise ProcessDiedError("the training process ended with status -9")


def killed_training(_):
    return raised(lambda: dg.materialize([crashing], instance=dg.DagsterInstance.ephemeral()))


CAUSES = {
    "a training that is killed": killed_training,
    "disk": lambda _: OSError(errno.ENOSPC, "No space left on device"),
    "quota": lambda _: OSError(errno.EDQUOT, "Disk quota exceeded"),
    "disk of SQLite": lambda _: sqlite3.OperationalError("database or disk is full"),
    "disk of DuckDB": lambda _: duckdb.IOException('Could not write file "x": No space left on device'),
    "file size": lambda _: OSError(errno.EFBIG, "File too large"),
    "memory": lambda _: MemoryError(),
    "memory of torch": lambda _: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    "memory of DuckDB": too_little_memory,
    "rights": lambda _: PermissionError(errno.EACCES, "Permission denied", "/home/x"),
    "read-only": lambda _: OSError(errno.EROFS, "Read-only file system", "/home/x"),
    "runs that are no database": corrupt_runs,
    "runs that are locked": locked_runs,
    "a damaged warehouse": damaged_warehouse,
}
WAYS_OUT = {
    "a training that is killed": "lower training.batch_size",
    "disk": "finjepa clean", "quota": "finjepa clean", "disk of SQLite": "finjepa clean", "disk of DuckDB": "finjepa clean",
    "file size": "ulimit", "memory": "lower", "memory of torch": "lower", "memory of DuckDB": "FINJEPA_DUCKDB_MEMORY_LIMIT",
    "rights": "/home/x", "read-only": "FINJEPA_HOME", "runs that are no database": "move that folder away",
    "runs that are locked": "another process", "a damaged warehouse": "backup",
}  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES)
def test_a_known_cause_is_named_with_the_way_out(cause, tmp_path, monkeypatch):
    monkeypatch.setattr("finjepa_pipeline.runs.CRASH_RETRIES", CRASH_RETRIES._replace(delay=0.01))
    error = CAUSES[cause](tmp_path)
    for one in (error, wrapped(wrapped(error))):
        line = one_line(one)
        assert WAYS_OUT[cause] in line, error
        assert "unexpected" not in line
        assert "\n" not in line


@pytest.mark.parametrize(
    "fault", [KeyError("day"), ValueError("no space for a matrix"), RuntimeError("shape"), OSError(9, "x")]
)
def test_a_fault_of_the_product_is_reported_as_one(fault):
    assert explained(fault) is None
    assert "unexpected" in one_line(fault)


def test_a_message_that_names_the_place_keeps_its_words_unless_the_disk_is_full():
    error = FinJEPAError("cannot read /data/a.csv: Permission denied")
    error.__cause__ = PermissionError(errno.EACCES, "Permission denied", "/data/a.csv")
    assert one_line(error) == str(error)
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert "finjepa clean" in one_line(error)


def test_an_interruption_names_the_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/finjepa", "train", "--path", "my prices"])
    line = one_line(KeyboardInterrupt("training stopped at step 3 of 9, its state is saved"))
    assert line == (
        "interrupted: training stopped at step 3 of 9, its state is saved; `finjepa train --path 'my prices'` goes on from there"
    )
    assert "`finjepa train" in one_line(KeyboardInterrupt())
    assert not interrupts.asked.is_set()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"symbol,date,close\nA,2020-01-01,1\nA,2020-01-02,\xff\xfe\n", "utf-8"),
        (b'symbol,date,close\nA,2020-01-01,1\nA,"2020-01-02"x,1\n', "quote"),
    ],
)
def test_the_line_of_a_csv_file_that_cannot_be_read_is_named(tmp_path, content, named):
    file = tmp_path / "p.csv"
    file.write_bytes(content)
    columns = "{'a': 'VARCHAR', 'b': 'VARCHAR', 'c': 'VARCHAR'}"
    options = f"header = true, delim = ',', quote = '\"', auto_detect = false, columns = {columns}"
    query = f"SELECT * FROM read_csv('{file}', {options})"
    line = plain(raised(lambda: duckdb.sql(query).fetchall()))  # type: ignore[arg-type]
    assert line.startswith(f"line 3 of {file}: ")
    assert named in line.lower()


def test_a_database_of_another_program_is_left_alone(tmp_path):
    home = Settings(home=tmp_path).ensure()
    with duckdb.connect(str(home.warehouse)) as con:
        con.execute("CREATE TABLE customers AS SELECT 1 AS id")
    with pytest.raises(FinJEPAError, match="another program"), Warehouse.from_settings(home).connect():
        pass
    with duckdb.connect(str(home.warehouse)) as con:
        assert con.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("customers",)]
    home.warehouse.write_bytes(b"no database" * 1000)
    with pytest.raises(FinJEPAError, match=r"cannot open .*FINJEPA_HOME"), Warehouse.from_settings(home).connect():
        pass


@pytest.mark.parametrize("home", ["relative/folder", "/no/such/folder"])
def test_a_dagster_home_that_cannot_be_used_is_named(tmp_path, monkeypatch, home):
    monkeypatch.setenv("DAGSTER_HOME", home)
    with pytest.raises(FinJEPAError, match=f"DAGSTER_HOME={home}.*unset it"):
        open_instance(Settings(home=tmp_path).ensure())


def test_a_dagster_yaml_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    for content in ("a: [", "- a list", "no_such_key: 1"):
        (tmp_path / "dagster.yaml").write_text(content)
        with pytest.raises(FinJEPAError, match=r"dagster\.yaml cannot be used"):
            open_instance(Settings(home=tmp_path).ensure())


def test_a_state_that_does_not_fit_on_the_disk_leaves_the_one_before(tmp_path):
    """The limit stands for a full disk: PyTorch's own writer hides why it failed."""
    model = torch.nn.Linear(300, 300)
    optimizer = torch.optim.AdamW(model.parameters())
    save_state(tmp_path, 1, Best(), model, optimizer)
    program = (
        "import resource, signal, sys, torch; from pathlib import Path\n"
        "from finjepa_model.training.run_folder import Best, save_state\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "model = torch.nn.Linear(300, 300); optimizer = torch.optim.AdamW(model.parameters())\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: save_state(Path(sys.argv[1]), 2, Best(), model, optimizer)\n"
        "except OSError as error: sys.exit(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == errno.EFBIG, done.stderr[-2000:]
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
    assert load_state(tmp_path, model, optimizer)[0] == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000
