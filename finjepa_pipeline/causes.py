"""Errors that the machine or the user has caused, in one line with the way out. What is not among them is a fault of ours."""

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
_DISK_FULL = re.compile(
    r"no space left on device|database or disk is full|disk quota exceeded|max_temp_directory_size|os error 28\b",
    re.IGNORECASE,
)
_MEMORY = re.compile(r"cuda out of memory|can't allocate memory|cannot allocate memory|out of memory", re.IGNORECASE)
_DENIED = re.compile(r"permission denied|attempt to write a readonly database|read-only file system", re.IGNORECASE)


def explained(error: BaseException) -> str | None:
    """What caused an error and the way out; None where no known cause is in its chain."""
    # it names the place already, and only the first two reasons need another way out
    known = isinstance(error, FinJEPAError)
    for one in _chain(error):
        found = _disk(one) or _memory(one) or (None if known else _denied(one) or _database(one))
        if found is not None:
            return found
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        # Dagster and SQLAlchemy wrap what they caught
        error = error.__cause__ or getattr(error, "orig", None) or getattr(error, "original_exc_info", (None, None))[1]


def _disk(error: BaseException) -> str | None:
    number, text = getattr(error, "errno", None), str(error)
    if number in (errno.ENOSPC, errno.EDQUOT) or (_is_of_a_library(error) and _DISK_FULL.search(text)):
        pass
    elif "PytorchStreamWriter failed" in text or "disk I/O error" in text:  # neither says why
        return disk_full(_home())
    elif number == errno.EFBIG:
        return f"a file became larger than this system allows (`ulimit -f`): raise that limit, {_AGAIN}"
    else:
        return None
    return _full()


def disk_full(folder: Path) -> str | None:
    """A line about it if next to nothing is left on the disk of a folder."""
    while not folder.exists():
        folder = folder.parent
    return _full() if shutil.disk_usage(folder).free < _NEXT_TO_NOTHING else None


def _full() -> str:
    return f"the disk of {_home()} is full: free some space (`finjepa clean --dry-run` says what can go), {_AGAIN}"


def _memory(error: BaseException) -> str | None:
    if type(error).__name__ == "DagsterMaxRetriesExceededError":  # only crashes are tried again, see failures.py
        return (
            "a process of this run ended without a result, again and again: what it printed is above; if it printed nothing, it "
            f"was killed, most often for lack of memory: lower training.batch_size or --n-assets, {_AGAIN}"
        )
    is_known = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if not is_known and not (_is_of_a_library(error) and _MEMORY.search(str(error))):
        return None
    return (
        f"the machine has not enough memory ({_sentence(error)}): end other programs, or lower training.batch_size, "
        f"--n-assets or FINJEPA_DUCKDB_MEMORY_LIMIT, {_AGAIN}"
    )


def _denied(error: BaseException) -> str | None:
    number = getattr(error, "errno", None)
    of_a_database = (_is_of_duckdb(error) or isinstance(error, sqlite3.Error)) and _DENIED.search(str(error))
    if number not in (errno.EACCES, errno.EPERM, errno.EROFS) and not of_a_database:
        return None
    place = getattr(error, "filename", None)
    what = "is on a read-only file system" if number == errno.EROFS else "may not be read or written by this user"
    return f"{place or _home()} {what} ({_sentence(error)}): change its rights, or set FINJEPA_HOME to a folder that you own"


def _database(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, sqlite3.Error):
        place = os.environ.get("DAGSTER_HOME") or str(_home() / "dagster")
        if "locked" in text:
            return f"a database of runs in {place} is locked by another process: end it or wait, then run the same command again"
        if "not a database" in text or "malformed" in text or "unable to open" in text:
            return (
                f"a database of runs in {place} cannot be read ({_sentence(error)}): move that folder away, then run the same "
                "command again; it holds the history of runs only, and no prices or models"
            )
    if _is_of_duckdb(error) and ("checksum" in text or "Corrupt" in text or "corrupt" in text):
        return (
            f"{_home() / 'warehouse.duckdb'} is damaged ({_sentence(error)}): put a backup in its place (docs/deploy.md), "
            "or move it away and ingest again"
        )
    return None


def _is_of_duckdb(error: BaseException) -> bool:
    return type(error).__module__ in ("duckdb", "_duckdb")  # by name: the training process does not import it


def _is_of_a_library(error: BaseException) -> bool:
    """Whether the text of an error is a library's, and not that of a user's code."""
    return not isinstance(error, FinJEPAError) and type(error).__module__.partition(".")[0] in (
        "builtins", "duckdb", "_duckdb", "sqlite3", "polars", "pyarrow", "torch", "safetensors_rust", "safetensors", "sqlalchemy",
    )  # fmt: skip


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _home() -> Path:
    # not by Settings: the training process uses this module, and does not import Dagster
    return Path(os.environ.get("FINJEPA_HOME") or ".finjepa").expanduser().absolute()
