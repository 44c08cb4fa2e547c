"""Ray nodes on this machine, the processes that they have started, and what homes got from them."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import torch

from tests.pipeline.object_store import BUCKET
from tests.system.dagster_server import free_port
from tests.system.processes import of_session
from tests.system.processes import with_texts as processes
from tests.system.product import COMMANDS, wait_until

SMALL = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=150000000", "--disable-usage-stats", "--block"]


class Cluster:
    """Ray nodes on this machine, each in a process group of its own."""

    def __init__(self, folder: Path, store: dict[str, str], hidden: Path):
        self.folder, self.hidden = folder, hidden
        self.environment = store | {"FINJEPA_ARTIFACTS": f"s3://{BUCKET}/artifacts"}
        self.port = free_port()
        self.nodes: list[subprocess.Popen] = []
        self.can_hide = subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add(self) -> None:
        """A node; all but the first do not see the homes."""
        raylets = len(processes("raylet/raylet", str(self.folder)))
        if self.nodes:
            command = [COMMANDS / "ray", "start", f"--address={self.address}", *SMALL]
            if self.can_hide:
                hide = f'mount -t tmpfs none "{self.hidden}" && exec "$@"'
                command = ["unshare", "-m", "sh", "-c", hide, "sh", *command]
        else:
            own = [f"--port={self.port}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
            command = [COMMANDS / "ray", "start", "--head", *own, *SMALL]
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        surroundings = os.environ | self.environment | {"TMPDIR": str(self.folder / "tmp")}
        log = (self.folder / f"node-{len(self.nodes)}.log").open("w")
        node = subprocess.Popen(command, stdout=log, stderr=log, env=surroundings, start_new_session=True)
        self.nodes.append(node)
        deadline = time.monotonic() + 120
        while len(processes("raylet/raylet", str(self.folder))) <= raylets:
            assert node.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        time.sleep(3)

    def workers(self, *names: str) -> list[int]:
        """Processes of these titles on any node."""
        ours = {pid for node in self.nodes for pid in of_session(node.pid)}
        return [pid for name in names for pid in processes(name) if pid in ours]

    def wait_until_idle(self) -> None:
        """Until no node has ranks, trials, what holds them, or tasks."""
        names = ("ray::RayTrainWorker", "ray::TrainController", "ray::_trial", "ray::ImplicitFunc", "ray::_call")
        wait_until(lambda: not self.workers(*names), 60, lambda: str(self.workers(*names)), every=0.5)

    def lose(self, node: subprocess.Popen) -> None:
        """Its power is cut."""
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def end(self) -> None:
        for node in reversed(self.nodes):
            node.terminate()
        for node in self.nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(timeout=30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


def has_saved(home: Path, steps: int) -> Callable[[], bool]:
    """Whether a training has brought a state of so many steps home."""

    def ready() -> bool:
        state = next(home.glob("checkpoints/*.run/trainer_state.pt"), None)
        return state is not None and torch.load(state, weights_only=False)["step"] >= steps

    return ready


def equal_rows(home: Path, other: Path) -> None:
    for table, columns in (
        ("backtest_returns", "strategy, block, date, net_return, wealth"),
        ("backtest_decisions", "strategy, block, date, entity, weight, signal"),
        ("backtest_replays", "strategy, block, replay, sharpe, annual_return"),
        ("forecast_quality", "forecaster, block, measure, mean, t"),
        ("leaderboard", "strategy, block, sharpe, annual_return, excess_sharpe"),
    ):
        rows = []
        for place in (home, other):
            with duckdb.connect(str(place / "warehouse.duckdb"), read_only=True) as con:
                rows.append(con.execute(f"SELECT {columns} FROM {table} ORDER BY ALL").fetchall())
        assert rows[0], table
        assert repr(rows[0]) == repr(rows[1]), table
