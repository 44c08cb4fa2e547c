"""What the user or the machine has caused is named with the way out; a fault of the product is reported as one."""

import errno
import os
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


def too_little_memory(_):
    con = duckdb.connect(config={"memory_limit": "10MB", "temp_directory": ""})
    query = "SELECT a.range FROM range(9999999) a JOIN range(9999999) b USING (range) ORDER BY 1"
    return raised(lambda: con.execute(query).fetchall())


@dg.asset
@final
def crashing() -> None:
    raise ProcessDiedError("the training process ended with status -9")


def killed_training(_):
    return raised(lambda: dg.materialize([crashing], instance=dg.DagsterInstance.ephemeral()))


CAUSES = {  # the error, and the way out that is named
    "a training that is killed": (killed_training, "lower training.batch_size"),
    "disk": (lambda _: OSError(errno.ENOSPC, "No space left on device"), "finjepa clean"),
    "disk of SQLite": (lambda _: sqlite3.OperationalError("database or disk is full"), "finjepa clean"),
    "disk of DuckDB": (lambda _: duckdb.IOException('Could not write "x": No space left on device'), "finjepa clean"),
    "memory": (lambda _: MemoryError(), "lower"),
    "memory of torch": (lambda _: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "lower"),
    "memory of DuckDB": (too_little_memory, "FINJEPA_DUCKDB_MEMORY_LIMIT"),
    "rights": (lambda _: PermissionError(errno.EACCES, "Permission denied", "/home/x"), "/home/x"),
    "read-only": (lambda _: OSError(errno.EROFS, "Read-only file system", "/home/x"), "FINJEPA_HOME"),
    "runs that are no database": (corrupt_runs, "move that folder away"),
    "runs that are locked": (locked_runs, "another process"),
    "a damaged warehouse": (damaged_warehouse, "backup"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_a_known_cause_is_named_with_the_way_out(cause, tmp_path, monkeypatch):
    monkeypatch.setattr("finjepa_pipeline.runs.CRASH_RETRIES", CRASH_RETRIES._replace(delay=0.01))
    make, way_out = CAUSES[cause]
    error = make(tmp_path)
    for one in (error, wrapped(wrapped(error))):
        line = one_line(one)
        assert way_out in line, error
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
    assert "step 3 of 9, its state is saved; `finjepa train --path 'my prices'` goes on" in line
    assert "`finjepa train" in one_line(KeyboardInterrupt())
    assert not interrupts.asked.is_set()


def test_a_warehouse_that_is_no_database_is_named_with_the_way_out(tmp_path):
    home = Settings(home=tmp_path).ensure()
    home.warehouse.write_bytes(b"no database" * 1000)
    with pytest.raises(FinJEPAError, match=r"cannot open .*FINJEPA_HOME"), Warehouse.from_settings(home).connect():
        pass


def test_an_instance_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    settings = Settings(home=tmp_path / "home").ensure()
    for home in ("relative/folder", "/no/such/folder"):
        monkeypatch.setenv("DAGSTER_HOME", home)
        with pytest.raises(FinJEPAError, match=f"DAGSTER_HOME={home}.*unset it"):
            open_instance(settings)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    for content in ("a: [", "- a list", "no_such_key: 1"):
        (tmp_path / "dagster.yaml").write_text(content)
        with pytest.raises(FinJEPAError, match=r"dagster\.yaml cannot be used"):
            open_instance(settings)


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
    with pytest.raises(duckdb.Error) as error:
        duckdb.sql(f"SELECT * FROM read_csv('{file}', {options})").fetchall()
    line = plain(error.value)
    assert line.startswith(f"line 3 of {file}: ")
    assert named in line.lower()
