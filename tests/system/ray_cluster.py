"""Ray nodes on this machine, and the processes that they have started."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.pipeline.object_store import BUCKET
from tests.system.dagster_server import free_port
from tests.system.processes import with_texts as processes
from tests.system.product import COMMANDS

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
