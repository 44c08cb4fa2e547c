"""The tables as immutable Parquet files, so that readers never meet the lock of the warehouse.

Prices lie by year; a year that has not changed since the snapshot before is a link to the files of that one, so that a night
writes the current year. Adjusted prices are not copied: they are the same view as in the warehouse.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json
from finjepa_pipeline.prices import store
from finjepa_pipeline.warehouse import file_literal, literal, sql

TABLES = ("quarantined_prices", "corporate_actions", "entities", "stale_prices", "universe")
_YEARS = "years.json"  # what each year of prices hashes to
_POINTER = "current"
_CLOCKED = "clocked_prices.parquet"  # only where symbols have calendars of their own; it is `prices` otherwise
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
        _write_prices(con, temporary, pointer)
        ((feed_id,),) = con.execute("SELECT feed_id FROM active_view").fetchall()
        for table in (*TABLES, *(["clocked_prices"] if store.has_own_calendars(con, feed_id) else [])):
            file = literal(temporary / f"{table}.parquet")
            con.execute(f"COPY (FROM main.{table}) TO {file} (FORMAT parquet, COMPRESSION zstd)")
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
        files = {name: [place / f"{name}.parquet"] for name in TABLES}
        for table, paths in {**files, "prices": sorted(place.glob("prices/*/*.parquet"))}.items():
            listed = ", ".join(map(file_literal, paths))
            con.execute(f"CREATE VIEW {table} AS FROM read_parquet([{listed}], hive_partitioning = false)")
        clocked = place / _CLOCKED
        rows = f"read_parquet([{file_literal(clocked)}])" if clocked.is_file() else "prices"
        con.execute(sql("adjusted_prices").format(adjusted=sql("adjusted_rows").format(prices=rows)))
        yield con


def _write_prices(con: duckdb.DuckDBPyConnection, place: Path, before: Path) -> None:
    years = _digests(con)
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):  # none, or one of an older layout: nothing to link to
        known = json.loads((before / _YEARS).read_text(encoding="utf-8"))
    changed = [year for year, digest in years.items() if known.get(year) != digest]
    for year in years.keys() - set(changed):
        shutil.copytree(before / "prices" / f"year={year}", place / "prices" / f"year={year}", copy_function=os.link)
    if changed:
        con.execute(
            f"COPY (SELECT *, year(date) AS year FROM main.prices WHERE year(date) IN ({', '.join(changed)})) "
            f"TO {literal(place / 'prices')} (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (year), OVERWRITE_OR_IGNORE)"
        )
    (place / _YEARS).write_text(to_json(years), encoding="utf-8")


def _digests(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """What each year of the active view hashes to."""
    feed_id, revision = con.execute("SELECT feed_id, revision FROM active_view").fetchall()[0]
    query = "year_digests" if store.is_newest(con, feed_id, revision) else "shown_year_digests"
    rows = con.execute(sql(query).format(feed_id=feed_id, revision=revision)).fetchall()
    return {str(year): digest for year, digest in rows}
