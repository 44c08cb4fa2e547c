"""What holds one training rank on a node of a cluster: it starts the training process, and ends it.

Made a Ray actor by `ray_ranks`. The training process is the one that torchrun starts on a single machine, with the same
environment, so its arithmetic is the same.
"""

import contextlib
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finjepa_pipeline.training.exchange import DEVICE_NAME, LAUNCHER_PID
from finjepa_pipeline.training.run import training_code_version

_SIOCGIFADDR = 0x8915
_LAST_WORDS = 4000  # characters of a rank's log that are told


@dataclass(frozen=True)
class Place:
    """Where a host has come to live.

    Attributes:
        port: free on the node a moment ago; code: hash of the training code that is installed there.
        sees: whether the panel and the run folder are to be seen from there.
    """

    node: str
    address: str
    port: int
    code: str
    sees: bool


@dataclass(frozen=True)
class Outcome:
    """How a training process ended: its status, negative for a signal, and the end of its log."""

    status: int
    words: str


class RankHost:
    """One rank's home. Methods are called while `train` waits."""

    def __init__(self, panel: Path, run_folder: Path):
        self._panel, self._run_folder = panel, run_folder
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def place(self) -> Place:
        import ray  # pyright: ignore[reportMissingImports]

        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        sees = (self._panel / "manifest.json").is_file() and self._run_folder.is_dir()
        node = ray.get_runtime_context().get_node_id()
        return Place(node, ray.util.get_node_ip_address(), port, training_code_version(), sees)

    def train(self, environment: Mapping[str, str], address: str, log_name: str) -> Outcome:
        """Start the training process and wait for its end."""
        command = [sys.executable, "-P", "-m", "finjepa_pipeline.training.launch"]  # never the code of a working folder
        command += ["--panel", str(self._panel), "--run-folder", str(self._run_folder)]
        known = os.environ | {LAUNCHER_PID: str(os.getpid()), DEVICE_NAME: f"cpu-{socket.gethostname()}-{os.getpid()}"}
        interface = interface_of(address)
        if interface and "GLOO_SOCKET_IFNAME" not in os.environ:
            known |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
        log = self._run_folder / log_name
        with log.open("wb") as file:
            self._process = subprocess.Popen(command, env=known | dict(environment), stdout=file, stderr=file)
            if self._stopped:
                self.stop()
            status = self._process.wait()
        return Outcome(status, log.read_text(encoding="utf-8", errors="replace")[-_LAST_WORDS:])

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
