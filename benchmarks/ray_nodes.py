"""A Ray cluster of one machine for a benchmark, and what else went on there: bytes over the loopback device, others' work."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from bisect import bisect
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finjepa_pipeline.settings import LOCAL

MARK = "FINJEPA_BENCHMARK"  # in the environment of all that a case starts


@contextmanager
def cluster(nodes: int) -> Iterator[str]:
    """Nodes of one CPU each; the block gets the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray, folder = str(Path(sys.executable).with_name("ray")), Path("/tmp") / f"finjepa-bench-{os.getpid()}"
    head, address = (
        ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"],
        f"127.0.0.1:{port}",
    )
    common = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=150000000", "--disable-usage-stats", "--block"]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for own in (head, [f"--address={address}"])[:nodes]:
            command = [ray, "start", *own, *common]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            running.append(subprocess.Popen(command, start_new_session=True, **quiet))
            await_cpus(address, len(running))
        time.sleep(5)  # in which it falls silent
        yield address
    finally:
        for node in reversed(running):
            node.terminate()
        for node in running:
            node.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def await_cpus(address: str, count: int) -> None:
    """In a process of its own, so that the one that is measured meets the cluster for the first time."""
    ask = f"import ray; ray.init('{address}', logging_level='ERROR'); assert ray.cluster_resources()['CPU'] == {count}"
    deadline = time.monotonic() + 120
    while subprocess.run([sys.executable, "-c", ask], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        assert time.monotonic() < deadline, "the cluster did not start"
        time.sleep(1)


@contextmanager
def on_this_machine() -> Iterator[str]:
    yield LOCAL


class Neighbours:
    """Counts, while the block runs, the seconds that processes which do not belong to the case take of its cores."""

    def __init__(self, cores: Collection[int]):
        self._cores = cores
        self._taken = [(time.monotonic(), 0.0)]

    def __enter__(self) -> "Neighbours":
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def between(self, began: float, ended: float) -> float:
        """Seconds that they took between two moments of the monotonic clock."""
        times, seconds = zip(*self._taken, strict=True)
        return seconds[min(bisect(times, ended), len(seconds) - 1)] - seconds[bisect(times, began) - 1]

    def _watch(self) -> None:
        known: dict[int, float] = {}
        seconds = 0.0
        while not self._over.wait(1.0):
            for folder in Path("/proc").iterdir():
                if folder.name.isdigit() and int(folder.name) != os.getpid():
                    with suppress(OSError):
                        if f"{MARK}=".encode() in (folder / "environ").read_bytes():
                            continue
                        fields = (folder / "stat").read_text().rpartition(")")[2].split()
                        now = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                        if int(fields[36]) in self._cores:  # where it was last
                            seconds += now - known.get(int(folder.name), now)
                        known[int(folder.name)] = now
            self._taken.append((time.monotonic(), seconds))


def cores_of(count: int) -> list[int]:
    """The first ones that this process may use."""
    return sorted(os.sched_getaffinity(0))[:count]


def loopback() -> int:
    """Bytes that the loopback device has taken so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    raise RuntimeError("no loopback device")
