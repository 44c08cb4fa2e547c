"""The tables as immutable Parquet files, so that readers never meet the lock of the warehouse."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb

from finjepa_model.errors import FinJEPAError

TABLES = ("prices", "quarantined_prices", "adjusted_prices", "corporate_actions", "entities", "universe")
_POINTER = "current"
_KEPT = 2  # the present one, and the one that a reader may still have open


def publish_snapshot(con: duckdb.DuckDBPyConnection, folder: Path, name: str) -> bool:
    """Write the tables to `folder/name` and point readers at it; False if that is where they look already."""
    place, pointer = folder / name, folder / _POINTER
    if place.is_dir() and pointer.is_symlink() and os.readlink(pointer) == name:
        return False
    if not place.is_dir():
        temporary = folder / f".tmp-{os.getpid()}-{name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for table in TABLES:
            con.execute(f"COPY (FROM main.{table}) TO '{temporary / table}.parquet' (FORMAT parquet, COMPRESSION zstd)")
        os.replace(temporary, place)
    new_pointer = folder / f".tmp-{os.getpid()}-{_POINTER}"
    new_pointer.unlink(missing_ok=True)
    new_pointer.symlink_to(name)
    os.replace(new_pointer, pointer)
    os.utime(place)
    published = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    for old in sorted(published, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return True


@contextlib.contextmanager
def read_snapshot(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to the published tables, whatever the warehouse is doing.

    Raises:
        FinJEPAError: if nothing was published yet.
    """
    pointer = folder / _POINTER
    if not pointer.is_dir():
        raise FinJEPAError(f"there is no snapshot in {folder} yet; run `finjepa ingest` first")
    place = pointer.resolve()
    with duckdb.connect() as con:
        for table in TABLES:
            con.execute(f"CREATE VIEW {table} AS FROM '{place / table}.parquet'")
        yield con
