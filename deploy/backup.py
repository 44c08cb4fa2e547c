"""Backs FINJEPA_HOME up into one archive, or puts it back.

    python deploy/backup.py save backup.tar.gz        # while everything runs
    python deploy/backup.py restore backup.tar.gz     # into an empty FINJEPA_HOME, with the services stopped

The warehouse is locked while it is copied, so that what is saved is whole; where a step holds it, the backup waits. Panels
and downloaded sources are not saved: the next run makes them again. Dagster's history lives in PostgreSQL, for which there is
pg_dump.
"""

import argparse
import os
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import duckdb

PATIENCE_S = 900.0  # a step holds the warehouse for minutes at most
KEPT = ("checkpoints", "releases", "reports", "live_record", "nightly.yaml", "contract")


def save(home: Path, archive: Path) -> None:
    """Write beside the archive's place, and rename: a broken backup never has its name."""
    if not (home / "warehouse.duckdb").is_file():
        sys.exit(f"{home} has no warehouse.duckdb: there is nothing to save; is FINJEPA_HOME right?")
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        copy, beside = Path(folder) / "warehouse.duckdb", Path(folder) / archive.name
        with duckdb.connect(str(copy)) as con:
            _attach(con, home / "warehouse.duckdb")
            con.execute("COPY FROM DATABASE home TO warehouse")
        with tarfile.open(beside, "w:gz") as out:
            out.add(copy, "warehouse.duckdb")
            for name in KEPT:
                if (home / name).exists():
                    out.add(home / name, name, filter=lambda entry: None if "/.tmp-" in f"/{entry.name}" else entry)
        os.replace(beside, archive)


def _attach(con: duckdb.DuckDBPyConnection, warehouse: Path) -> None:
    """Attach the warehouse as `home`, once nobody writes to it."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            quoted = str(warehouse).replace("'", "''")
            con.execute(f"ATTACH '{quoted}' AS home (READ_ONLY)")
            return
        except duckdb.IOException as error:
            if "lock" not in str(error) or time.monotonic() > deadline:
                sys.exit(f"cannot read {warehouse}: {str(error).splitlines()[0]}")
        time.sleep(0.5)


def restore(home: Path, archive: Path) -> None:
    if home.exists() and any(home.iterdir()):
        sys.exit(f"{home} is not empty; move it away first")
    try:
        with tarfile.open(archive) as saved:
            saved.getmembers()  # to the end, so that one that was cut off is found before anything is written
            home.mkdir(parents=True, exist_ok=True)
            saved.extractall(home, filter="data")
    except (OSError, EOFError, tarfile.TarError) as error:
        sys.exit(f"{archive} cannot be restored: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("save", "restore"))
    parser.add_argument("archive", type=Path)
    arguments = parser.parse_args()
    home = Path(os.environ.get("FINJEPA_HOME") or ".finjepa").absolute()
    {"save": save, "restore": restore}[arguments.action](home, arguments.archive.absolute())


if __name__ == "__main__":
    main()
