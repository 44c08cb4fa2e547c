"""What holds one training rank on a node of a cluster: it starts the training process, and ends it.

Made a Ray actor by `ranks`. The training process is the one that torchrun starts on a single machine, with the same
environment, so its arithmetic is the same. A node that does not see the home works on copies: the panel comes from the store of
artefacts once, the state of the training at every start, and what rank 0 saves goes back there.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finjepa_model.errors import FinJEPAError
from finjepa_model.training.state import METRICS_FILE
from finjepa_pipeline.store import Artifacts, alone
from finjepa_pipeline.training.code import training_code_version
from finjepa_pipeline.training.exchange import DEVICE_NAME, FAILURE_FILE, LAUNCHER_PID, RESULT_FOLDER
from finjepa_pipeline.training.mirror import mirrored

_SIOCGIFADDR = 0x8915
_LAST_WORDS = 4000  # characters of a rank's log that are told


@dataclass(frozen=True)
class Place:
    """Where a host has come to live.

    Attributes:
        port: free on the node a moment ago; code: hash of the training code that is installed there.
        sees: whether the home is to be seen from there; trouble: why the host cannot train there.
    """

    node: str
    address: str
    port: int
    code: str
    sees: bool
    trouble: str | None


@dataclass(frozen=True)
class Outcome:
    """How a training process ended: its status, negative for a signal; the end of its log; and, of one that a user can mend,
    why it made nothing."""

    status: int
    words: str
    failure: str | None

    @property
    def last_line(self) -> str:
        """Of the log: what an exception says."""
        return (self.words.strip().splitlines() or ["no message"])[-1]


class RankHost:
    """One rank's home. Methods are called while `train` waits.

    Attributes:
        run_folder: where it trains: the driver's, or a copy of it.
    """

    def __init__(self, panel: Path, run_folder: Path, artifacts: str | None):
        self._panel, self.run_folder = panel, run_folder
        self._store = Artifacts(artifacts) if artifacts else None
        self._sees = (panel / "manifest.json").is_file() and run_folder.is_dir()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def place(self) -> Place:
        import ray  # pyright: ignore[reportMissingImports]

        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        trouble = None
        if not self._sees:
            try:
                self._fetch()
            except FinJEPAError as error:
                trouble = str(error)
        address, node = ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id()
        return Place(node, address, port, training_code_version(), self._sees, trouble)

    def _fetch(self) -> None:
        """Copies of the panel, and of the state of the training as it stands now.

        Raises:
            FinJEPAError: if there is no store, or it has not got them.
        """
        if self._store is None:
            raise FinJEPAError(
                f"does not see {self.run_folder}; put FINJEPA_HOME on a folder that all nodes share, or set "
                "FINJEPA_ARTIFACTS to a store that they reach"
            )
        self._panel = self._store.in_place(self._panel)
        kind, name = self.run_folder.parent.name, self.run_folder.name
        self.run_folder = self._store.cache() / kind / name
        self.run_folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(self.run_folder.with_name(f".{name}.lock")):  # ranks of a node share the copy
            shutil.rmtree(self.run_folder, ignore_errors=True)
            if not self._store.get(kind, name, self.run_folder):
                raise FinJEPAError(f"does not find {kind}/{name} in FINJEPA_ARTIFACTS={self._store.url}")
            shutil.rmtree(self.run_folder / RESULT_FOLDER, ignore_errors=True)
            (self.run_folder / FAILURE_FILE).unlink(missing_ok=True)

    def train(self, environment: Mapping[str, str], address: str, log_name: str) -> Outcome:
        """Start the training process and wait for its end."""
        command = [sys.executable, "-P", "-m", "finjepa_pipeline.training.launch"]  # never the code of a working folder
        command += ["--panel", str(self._panel), "--run-folder", str(self.run_folder)]
        known = os.environ | {LAUNCHER_PID: str(os.getpid()), DEVICE_NAME: f"cpu-{socket.gethostname()}-{os.getpid()}"}
        interface = interface_of(address)
        if interface and "GLOO_SOCKET_IFNAME" not in os.environ:
            known |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
        log, failure = self.run_folder / log_name, self.run_folder / FAILURE_FILE
        is_first = environment["RANK"] == "0" and not self._sees
        with log.open("wb") as file, mirrored(self._store if is_first else None, self.run_folder):
            self._process = subprocess.Popen(command, env=known | dict(environment), stdout=file, stderr=file)
            if self._stopped:
                self.stop()
            status = self._process.wait()
        why = failure.read_text(encoding="utf-8").strip() if failure.is_file() else None
        return Outcome(status, log.read_text(encoding="utf-8", errors="replace")[-_LAST_WORDS:], why)

    def records(self) -> str:
        """`metrics.jsonl` as it is now, for a driver that does not see it."""
        file = self.run_folder / METRICS_FILE
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def stop(self) -> None:
        """Ask for a saved state and an end."""
        self._stopped = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


def interface_of(address: str) -> str | None:
    """The network interface that has this IPv4 address; gloo would ask the host's name, which is often its loopback's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None
