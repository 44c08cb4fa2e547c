"""A Ray cluster of one machine for a benchmark, and what else went on there: bytes over the loopback device, others' work."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finjepa_pipeline.settings import LOCAL

PORT = 6391
MARK = "FINJEPA_BENCHMARK"  # in the environment of all that a case starts


@contextmanager
def cluster(nodes: int) -> Iterator[str]:
    """Nodes of one CPU each; the block gets the address."""
    ray, folder = str(Path(sys.executable).with_name("ray")), Path("/tmp") / f"finjepa-bench-{os.getpid()}"
    head, address = (
        ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}"],
        f"127.0.0.1:{PORT}",
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
    """Counts, while the block runs, the processor seconds of processes that do not belong to the case."""

    def __enter__(self) -> "Neighbours":
        self._over = threading.Event()
        self._took: dict[int, list[float]] = {}
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        return sum(last - first for first, last in self._took.values())

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            for folder in Path("/proc").iterdir():
                if folder.name.isdigit() and int(folder.name) != os.getpid():
                    with suppress(OSError):
                        if f"{MARK}=".encode() not in (folder / "environ").read_bytes():
                            ticks = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
                            now = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
                            self._took.setdefault(int(folder.name), [now, now])[1] = now


def loopback() -> int:
    """Bytes that the loopback device has taken so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    raise RuntimeError("no loopback device")
