"""The same jobs on a Ray cluster of two nodes, each with its own processes and object store: the results are those of one
machine, whoever is killed, and a run that is cancelled leaves nothing behind."""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import duckdb
import pytest

from tests.system.product import COMMANDS, ROOT, environment, finjepa, quick_training, write_prices
from tests.system.test_production import free_port

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray"),
]
TRAINING = [
    *quick_training(), "--processes", "2", "--set", "training.steps_per_epoch=20", "--set", "training.checkpoint_every=5",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    folder = Path("/tmp") / f"finjepa-ray-{os.getpid()}"  # short: Ray's sockets have a limit of 107 characters
    port = free_port()
    small = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=150000000", "--disable-usage-stats", "--block"]
    head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"]
    nodes = []
    try:
        for number, which in enumerate((head, [f"--address=127.0.0.1:{port}"])):
            nodes.append(
                subprocess.Popen(
                    [COMMANDS / "ray", "start", *which, *small], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )  # fmt: skip
            deadline = time.monotonic() + 120
            while len(_processes("raylet/raylet", str(folder))) <= number:
                assert nodes[-1].poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.5)
        time.sleep(3)
        yield f"127.0.0.1:{port}"
    finally:
        for node in reversed(nodes):
            node.terminate()
        for node in nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(timeout=30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A home in which everything was done on one machine, and its prices."""
    folder = tmp_path_factory.mktemp("local")
    source = ["--data-source", "files", "--path", str(write_prices(folder / "prices"))]
    for command in (["train", *source, *TRAINING], ["backtest", "--planner", "mppi", "--controls", "ewma"]):
        done = finjepa(folder / "home", *command)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder / "home", source


def _processes(*texts: str) -> list[int]:
    """Processes whose command line or name has all of the texts."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if all(text in line for text in texts):
                    found.append(int(folder.name))
    return found


def _start(home: Path, cluster: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [COMMANDS / "finjepa", *arguments], env=environment(home) | {"FINJEPA_COMPUTE": cluster}, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def _until(process: subprocess.Popen[str], ready, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_training_whose_worker_is_killed_gives_the_checkpoint_of_one_machine(cluster, local, tmp_path):
    home, source = local
    run = _start(tmp_path, cluster, "train", *source, *TRAINING)
    _until(run, lambda: list(tmp_path.glob("checkpoints/*.run/trainer_state.pt")))
    ranks = _processes("finjepa_pipeline.training.launch", str(tmp_path))
    assert len(ranks) == 2
    os.kill(ranks[-1], signal.SIGKILL)
    output = run.communicate(timeout=300)[0]
    assert run.returncode == 0, output[-3000:]
    assert "a training rank was lost" in output
    (mine,), (theirs,) = (list(place.glob("checkpoints/*/model.safetensors")) for place in (tmp_path, home))
    assert mine.read_bytes() == theirs.read_bytes()
    assert mine.parent.name == theirs.parent.name


def test_a_backtest_whose_worker_is_killed_gives_the_leaderboard_of_one_machine(cluster, local, tmp_path):
    home, _ = local
    shutil.copytree(home, tmp_path / "home")
    with duckdb.connect(str(tmp_path / "home" / "warehouse.duckdb")) as con:
        for table in ("backtest_returns", "backtest_decisions", "backtest_replays", "leaderboard"):
            con.execute(f"DELETE FROM {table}")
    run = _start(tmp_path / "home", cluster, "backtest", "--planner", "mppi", "--controls", "ewma")
    _until(run, lambda: _processes("ray::walk_one"))
    os.kill(_processes("ray::walk_one")[0], signal.SIGKILL)
    output = run.communicate(timeout=300)[0]
    assert run.returncode == 0, output[-3000:]
    for table, columns in (
        ("backtest_returns", "strategy, block, date, net_return, wealth"),
        ("backtest_decisions", "strategy, block, date, entity, weight, signal"),
        ("leaderboard", "strategy, block, sharpe, annual_return, excess_sharpe"),
    ):
        rows = []
        for place in (home, tmp_path / "home"):
            with duckdb.connect(str(place / "warehouse.duckdb"), read_only=True) as con:
                rows.append(con.execute(f"SELECT {columns} FROM {table} ORDER BY ALL").fetchall())
        assert rows[0]
        assert rows[0] == rows[1]


def test_a_training_that_is_cancelled_leaves_no_process(cluster, local, tmp_path):
    _, source = local
    run = _start(tmp_path, cluster, "train", *source, *TRAINING, "--set", "training.steps_per_epoch=9999")
    _until(run, lambda: list(tmp_path.glob("checkpoints/*.run/trainer_state.pt")))
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while left := _processes(str(tmp_path)):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    assert not list(tmp_path.glob("checkpoints/*/model.safetensors"))
