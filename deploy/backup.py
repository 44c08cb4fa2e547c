"""Backs FINJEPA_HOME up into one archive, or puts it back.

    python deploy/backup.py save backup.tar.gz        # while everything runs
    python deploy/backup.py restore backup.tar.gz     # into an empty FINJEPA_HOME, with the services stopped

The warehouse is locked while it is copied, so that what is saved is what some night has left. Panels, snapshots and downloaded
sources are not saved: the next night makes them again. Dagster's history lives in PostgreSQL, for which there is pg_dump.
"""

import argparse
import os
import sys
import tarfile
import tempfile
from pathlib import Path

import duckdb

KEPT = ("checkpoints", "releases", "reports", "nightly.yaml", "contract")


def save(home: Path, archive: Path) -> None:
    """Write beside the archive's place, and rename: a broken backup never has its name."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        copy, beside = Path(folder) / "warehouse.duckdb", Path(folder) / archive.name
        with duckdb.connect(str(copy)) as con:
            con.execute(f"ATTACH '{home / 'warehouse.duckdb'}' AS home (READ_ONLY)")
            con.execute("COPY FROM DATABASE home TO warehouse")
        with tarfile.open(beside, "w:gz") as out:
            out.add(copy, "warehouse.duckdb")
            for name in KEPT:
                if (home / name).exists():
                    out.add(home / name, name, filter=lambda entry: None if "/.tmp-" in f"/{entry.name}" else entry)
        os.replace(beside, archive)


def restore(home: Path, archive: Path) -> None:
    if home.exists() and any(home.iterdir()):
        sys.exit(f"{home} is not empty; move it away first")
    home.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as saved:
        saved.extractall(home, filter="data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("save", "restore"))
    parser.add_argument("archive", type=Path)
    arguments = parser.parse_args()
    home = Path(os.environ.get("FINJEPA_HOME") or ".finjepa").absolute()
    {"save": save, "restore": restore}[arguments.action](home, arguments.archive.absolute())


if __name__ == "__main__":
    main()
