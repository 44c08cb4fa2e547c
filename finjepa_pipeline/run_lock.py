"""A lock that the process of a run holds for as long as it lives: the kernel frees it however the process ends.

Dagster knows that a run has started; only this lock says whether it still has a process. A process id alone does not: another
process may have it by now, after a restart of the machine or in another container.
"""

import contextlib
import fcntl
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dagster import DagsterInstance

LOCK = "finjepa/lock"  # tag of a run that holds a lock: the name of its machine


def lock_of(instance: DagsterInstance, run_id: str) -> Path:
    """Beside the database of runs, so that the lock of a run is found where that was moved, copied or restored."""
    return Path(instance.root_directory) / "commands" / f"{run_id}.lock"


@contextlib.contextmanager
def locked(folder: Path, run_id: str) -> Iterator[dict[str, str]]:
    """Hold the lock of a run.

    Yields:
        Tags for the run; none on a file system without locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run_id}.lock"
    with path.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            path.unlink(missing_ok=True)
            yield {}
            return
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
        with contextlib.suppress(OSError):  # a full disk: the lock counts, and not what it says
            file.write(f"`{command}` (process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')})")
            file.flush()
        try:
            yield {LOCK: socket.gethostname()}
        finally:
            path.unlink(missing_ok=True)


def is_held(path: Path) -> bool | None:
    """Whether a living process holds a lock; None where there is none."""
    try:
        with path.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return None
    except OSError:  # of another user, or on a file system without locks: nothing is known, and nothing is ended
        return True


def holder(path: Path) -> str:
    """The command that took a lock, its process and since when, as it wrote them; empty if they cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
