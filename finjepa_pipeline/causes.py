"""Errors that the machine or the user has caused, in one line with the way out. What is not among them is a fault of ours.

The training process uses this module too, and imports neither Dagster nor DuckDB: their errors are known by name.
"""

import errno
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from finjepa_model.errors import FinJEPAError

FAILURE_FILE = "failure.txt"  # in a run folder: one line, why its training ended without a result

_AGAIN = "then run the same command again: it goes on from what is finished"
_NEXT_TO_NOTHING = 16 << 20
# Packages whose messages are read; those of a user's code are not.
_LIBRARIES = (
    "builtins", "duckdb", "_duckdb", "sqlite3", "polars", "pyarrow", "torch", "safetensors_rust", "safetensors", "sqlalchemy",
)  # fmt: skip
_DISK_FULL = re.compile(
    r"no space left on device|database or disk is full|disk quota exceeded|max_temp_directory_size|os error 28\b", re.I
)
_MEMORY = re.compile(r"can't allocate memory|cannot allocate memory|out of memory", re.I)
_DENIED = re.compile(r"permission denied|attempt to write a readonly database|read-only file system", re.I)


def explained(error: BaseException) -> str | None:
    """What caused an error and the way out; None where no known cause is in its chain."""
    # one of ours names the place already, and only a full disk or memory needs another way out
    known = isinstance(error, FinJEPAError)
    for one in _chain(error):
        found = _disk(one) or _memory(one) or (None if known else _denied(one) or _database(one))
        if found is not None:
            return found
    return None


def disk_full(folder: Path) -> str | None:
    """A line about it if next to nothing is left on the disk of a folder."""
    while not folder.exists():
        folder = folder.parent
    return _full() if shutil.disk_usage(folder).free < _NEXT_TO_NOTHING else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        # Dagster and SQLAlchemy wrap what they caught
        error = error.__cause__ or getattr(error, "orig", None) or getattr(error, "original_exc_info", (None, None))[1]


def _disk(error: BaseException) -> str | None:
    number, text = getattr(error, "errno", None), str(error)
    if number in (errno.ENOSPC, errno.EDQUOT) or (_package(error) in _LIBRARIES and _DISK_FULL.search(text)):
        return _full()
    if "PytorchStreamWriter failed" in text or "disk I/O error" in text:  # neither says why
        return disk_full(_home())
    return None


def _full() -> str:
    return f"the disk of {_home()} is full: free some space (`finjepa clean --dry-run` says what can go), {_AGAIN}"


def _memory(error: BaseException) -> str | None:
    if type(error).__name__ == "DagsterMaxRetriesExceededError":  # only crashes are tried again
        return (
            "a process of this run ended without a result, again and again: what it printed is above; if it printed nothing, it "
            f"was killed, most often for lack of memory: lower training.batch_size or --n-assets, {_AGAIN}"
        )
    known = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if not known and not (_package(error) in _LIBRARIES and _MEMORY.search(str(error))):
        return None
    return (
        f"the machine has not enough memory ({_sentence(error)}): end other programs, or lower training.batch_size, "
        f"--n-assets or FINJEPA_DUCKDB_MEMORY_LIMIT, {_AGAIN}"
    )


def _denied(error: BaseException) -> str | None:
    number = getattr(error, "errno", None)
    of_a_database = _package(error) in ("duckdb", "_duckdb", "sqlite3") and _DENIED.search(str(error))
    if number not in (errno.EACCES, errno.EPERM, errno.EROFS) and not of_a_database:
        return None
    place = getattr(error, "filename", None) or _home()
    return f"{place} may not be written ({_sentence(error)}): change its rights, or set FINJEPA_HOME to a folder that you own"


def _database(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, sqlite3.Error):
        place = os.environ.get("DAGSTER_HOME") or _home() / "dagster"
        if "locked" in text:
            return f"a database of runs in {place} is locked by another process: end it or wait, then run the same command again"
        if "not a database" in text or "malformed" in text or "unable to open" in text:
            return (
                f"a database of runs in {place} cannot be read ({_sentence(error)}): move that folder away, then run the same "
                "command again; it holds the history of runs only, and no prices or models"
            )
    if _package(error) in ("duckdb", "_duckdb") and ("checksum" in text or "orrupt" in text):
        return (
            f"{_home() / 'warehouse.duckdb'} is damaged ({_sentence(error)}): put a backup in its place (docs/how-to/deploy.md), "
            "or move it away and ingest again"
        )
    return None


def _package(error: BaseException) -> str:
    """The package that an error is of; empty of an error of ours, which is told by its own words."""
    return "" if isinstance(error, FinJEPAError) else type(error).__module__.partition(".")[0]


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _home() -> Path:
    return Path(os.environ.get("FINJEPA_HOME") or ".finjepa").expanduser().absolute()
