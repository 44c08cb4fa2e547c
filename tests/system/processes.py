"""What processes of this machine are and do, read from /proc."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_MARKS = {
    "dagster_webserver": "webserver",
    "finjepa_pipeline.ui webserver": "webserver",
    "dagster._daemon": "daemon",
    "finjepa_pipeline.training.process": "training",
    "code-server start": "keeper of the code server",
    "api grpc": "code server",
    "dagster dev": "dagster dev",
    "finjepa_pipeline.ui": "dagster dev",
}
KINDS = {*_MARKS.values(), "run", "fork server", "step"}


def with_texts(*texts: str) -> list[int]:
    """Processes whose command line has all of the texts."""
    return [pid for pid in _pids() if pid != os.getpid() and all(text in command_of(pid) for text in texts)]


def is_alive(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[0] not in "ZX"


def of_session(session: int) -> list[int]:
    """The living processes of a session, as `start_new_session` makes it."""
    return [pid for pid in _pids() if is_alive(pid) and (fields := _stat(pid)) and int(fields[3]) == session]


def of_home(home: Path) -> list[int]:
    """The living processes that carry this FINJEPA_HOME in their environment."""
    mark, found = f"FINJEPA_HOME={home}".encode(), []
    for pid in _pids():
        with contextlib.suppress(OSError):
            fields = _stat(pid)
            if fields and fields[0] != "Z" and mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def connected_to(port: int) -> list[int]:
    """The processes that hold an established TCP connection to a port of this machine."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {f"socket:[{parts[9]}]" for parts in lines if parts[2] == f"0100007F:{port:04X}" and parts[3] == "01"}
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            if inodes & {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}:
                found.append(pid)
    return found


def command_of(pid: int) -> str:
    """How a process was started; empty when it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def kind_of(pid: int) -> str:
    """What a process of the product is: one of `KINDS`, or a helper of Dagster or Python, named by its command. Dagster starts
    the process of a run, and that of a step, by multiprocessing: a run is a child of a code server, a step one of the fork
    server of a run."""
    command = command_of(pid)
    for mark, kind in _MARKS.items():
        if mark in command:
            return kind
    fields = _stat(pid)
    parent = command_of(int(fields[1])) if fields else ""
    if "forkserver" in command:
        return "step" if "forkserver" in parent else "fork server"
    return "run" if "spawn_main" in command and "forkserver" not in parent else command


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _stat(pid: int) -> list[str]:
    """State, parent, process group, session and so on; nothing when the process has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []
