"""Ingestion of a whole market, in units of a bare sorted CREATE TABLE AS SELECT of the same shards by the same DuckDB.

    python benchmarks/ingestion.py --rows 25000000 --folder /tmp/ingestion --report docs/results/ingestion.md

Each step runs in a process of its own, which reports its seconds (imports apart) and its peak memory. An ingestion ends with
the commit; the Data Docs of Great Expectations, which every `finjepa ingest` writes after it, are timed beside it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb

SHARDS = 4
SESSIONS = 3_571
COMMAND = "python benchmarks/ingestion.py --rows 25000000 --folder /tmp/ingestion --report docs/results/ingestion.md"


def generate(folder: Path, rows: int) -> None:
    """Shards in the Hub schema: whole symbols, sorted, dates as text, a dividend a quarter in adj_close."""
    from finjepa_pipeline.prices.calendar import sessions

    days = [day for day in sessions("XNYS") if day.year < 2026][-SESSIONS - 1 :]
    symbols = rows // SESSIONS
    (folder / "shards").mkdir(parents=True)
    with duckdb.connect() as con:
        con.execute("CREATE TABLE days AS SELECT unnest($days::DATE[]) AS date", {"days": days})
        con.execute("SELECT setseed(0.5)")
        for shard in range(SHARDS + 1):  # the last one is the day that comes later
            new_day = shard == SHARDS
            low, high = (0, symbols) if new_day else (symbols * shard // SHARDS, symbols * (shard + 1) // SHARDS)
            place = folder / ("new-day.parquet" if new_day else f"shards/part-{shard}.parquet")
            con.execute(f"""
                COPY (
                    SELECT symbol, date::VARCHAR AS date, round(close * 1.001, 6) AS open, round(close * 1.01, 6) AS high,
                        round(close * 0.99, 6) AS low, close, (1e5 + 1e7 * random())::BIGINT AS volume,
                        round(close * (0.9 + 0.0006 * ((year(date) - 2010) * 4 + quarter(date))), 6) AS adj_close
                    FROM (
                        SELECT 'S' || lpad(id::VARCHAR, 5, '0') AS symbol, date,
                            round((10 + id % 90) * (1 + 0.05 * random()), 6) AS close
                        FROM range({low}, {high}) AS ids(id) CROSS JOIN days
                        WHERE date {"=" if new_day else "<"} (SELECT max(date) FROM days)
                    )
                    ORDER BY symbol, date
                ) TO '{place}' (FORMAT parquet, COMPRESSION zstd)""")


def bare(folder: Path) -> float:
    """The unit: typed dates, sorted, nothing else."""
    place = folder / "bare.duckdb"
    place.unlink(missing_ok=True)
    started = time.perf_counter()
    with duckdb.connect(str(place)) as con:
        con.execute(f"""CREATE TABLE prices AS SELECT * REPLACE (date::DATE AS date)
                        FROM read_parquet('{folder}/shards/*.parquet') ORDER BY symbol, date""")
    return time.perf_counter() - started


def ingestion(folder: Path, home: str = "home", memory_limit: str = "3GB") -> tuple[float, float]:
    """Seconds of the ingestion, and of its Data Docs."""
    import great_expectations  # noqa: F401  # eight seconds of import that every process pays once

    from finjepa_pipeline.prices import contract
    from finjepa_pipeline.prices.calendar import sessions
    from finjepa_pipeline.prices.ingest import ingest
    from finjepa_pipeline.prices.sources import PriceSourceConfig
    from finjepa_pipeline.settings import Settings
    from finjepa_pipeline.warehouse import Warehouse

    sessions("XNYS")
    settings = Settings(home=folder / home, duckdb_memory_limit=memory_limit).ensure()
    config = PriceSourceConfig(data_source="files", path=str(folder / "shards"))
    started = time.perf_counter()
    report = ingest(Warehouse.from_settings(settings), settings, config)
    ingested = time.perf_counter()
    contract.write_docs(report.outcomes, settings.home / "contract")
    documented = time.perf_counter()
    print(f"{report.moved.added} new rows", file=sys.stderr)
    return ingested - started, documented - ingested


def derivation(folder: Path, home: str = "home", memory_limit: str = "3GB") -> float:
    from finjepa_pipeline.prices.derive import UniverseConfig, derive
    from finjepa_pipeline.settings import Settings
    from finjepa_pipeline.warehouse import Warehouse

    settings = Settings(home=folder / home, duckdb_memory_limit=memory_limit)
    started = time.perf_counter()
    report = derive(Warehouse.from_settings(settings), UniverseConfig())
    seconds = time.perf_counter() - started
    print(f"reused: {report.reused}", file=sys.stderr)
    return seconds


STEPS: dict[str, Callable[[Path], float | tuple[float, float]]] = {
    "bare": bare,
    "ingest": ingestion,
    "derive": derivation,
    "limited ingest": lambda folder: ingestion(folder, "limited-home", "2GB"),
    "limited derive": lambda folder: derivation(folder, "limited-home", "2GB"),
    "shuffled ingest": lambda folder: ingestion(folder, "shuffled-home"),
    "shuffled limited ingest": lambda folder: ingestion(folder, "shuffled-home", "2GB"),
}


@dataclass(frozen=True)
class Measured:
    seconds: float
    peak_gb: float
    docs_seconds: float = 0.0

    @property
    def with_docs(self) -> "Measured":
        return Measured(self.seconds + self.docs_seconds, self.peak_gb)


def measure(step: str, folder: Path) -> Measured:
    done = subprocess.run(
        [sys.executable, __file__, "--step", step, "--folder", str(folder)], capture_output=True, text=True, check=False
    )
    print(step, done.stdout.strip(), done.stderr.strip()[-300:], flush=True)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def rewrite(folder: Path, query: str) -> None:
    """Every shard again, as `query` has it."""
    with duckdb.connect() as con:
        con.execute("SET memory_limit = '4GB'")
        for path in sorted((folder / "shards").glob("part-*.parquet")):
            temporary = path.with_suffix(".new")
            rows = query.format(path=path, new_day=folder / "new-day.parquet")
            con.execute(f"COPY ({rows}) TO '{temporary}' (FORMAT parquet, COMPRESSION zstd)")
            os.replace(temporary, path)


def run(folder: Path, rows: int) -> str:
    """All steps in order, and the table of them."""
    shutil.rmtree(folder, ignore_errors=True)
    generate(folder, rows)
    table = Table(measure("bare", folder))
    first = measure("ingest", folder)
    table.add("first ingest: rules, quarantine, duplicates, versions, contract", first, "2.5, 3.5 GB")
    home = folder / "home" / "warehouse.duckdb"
    table.add("... with its Data Docs", first.with_docs, "2.5, 3.5 GB")
    size = home.stat().st_size / (folder / "bare.duckdb").stat().st_size
    table.add("the same files again, Data Docs looked at", measure("ingest", folder).with_docs, "0.15")
    derived = measure("derive", folder)
    both = Measured(first.with_docs.seconds + derived.seconds, max(first.peak_gb, derived.peak_gb))
    table.add("first ingest with adjustment, events, entities and universe", both, "5, 3.5 GB")
    grown = home.stat().st_size / (folder / "bare.duckdb").stat().st_size
    shutil.copy(folder / "new-day.parquet", folder / "shards" / "part-9.parquet")
    new_day = measure("ingest", folder)
    table.add("one new day", new_day, "")
    table.add("... with its Data Docs", new_day.with_docs, "")
    table.add("... and what follows from it", measure("derive", folder), "")
    rewrite(folder, "FROM '{path}'")
    table.add("the same content in other files", measure("ingest", folder), "")
    shutil.rmtree(folder / "home")
    (folder / "shards" / "part-9.parquet").unlink()
    table.add("first ingest, memory limit 2GB", measure("limited ingest", folder), "2.3 GB")
    table.add("... and what follows from it, memory limit 2GB", measure("limited derive", folder), "2.3 GB")
    (folder / "limited-home").rename(folder / "home")
    rewrite(folder, "FROM '{path}' UNION ALL FROM '{new_day}' SEMI JOIN '{path}' USING (symbol) ORDER BY symbol, date")
    table.add("one new day, for which all shards were written again", measure("ingest", folder), "")
    shutil.rmtree(folder / "home")
    rewrite(folder, "FROM '{path}' ORDER BY hash(symbol, date)")
    unordered = Table(measure("bare", folder))
    unordered.add("first ingest", measure("shuffled ingest", folder), "2.5, 3.5 GB")
    shutil.rmtree(folder / "shuffled-home")
    unordered.add("first ingest, memory limit 2GB", measure("shuffled limited ingest", folder), "2.3 GB")
    return (
        "# Ingestion of a whole market\n\n"
        f"{rows:,} rows, {rows // SESSIONS:,} symbols, {SHARDS} zstd Parquet shards; DuckDB {duckdb.__version__}, "
        f"{os.cpu_count()} cores. Seconds are in units of a bare\n`CREATE TABLE AS SELECT ... ORDER BY symbol, date` of the "
        "same shards in the same run; imports (Great Expectations, the exchange\ncalendar) are not counted. An ingestion ends "
        "with the commit; its Data Docs are written after it, when the warehouse is open\nto others again. Peak memory is "
        "VmHWM of the process. Made by\n\n"
        f"    {COMMAND}\n\n"
        f"{table}\n\n"
        "Shards whose rows are in no order, in units of the bare one of the same shards:\n\n"
        f"{unordered}\n\n"
        f"The database is {size:.2f} times the bare one after the first ingest and {grown:.2f} with what is\n"
        "derived (at most 1.3).\n"
    )


class Table:
    """Steps in units of a bare load."""

    def __init__(self, unit: Measured) -> None:
        self._unit = unit
        self._lines = [f"| bare sorted CTAS ({unit.seconds:.1f} s) | 1.00 | {unit.peak_gb:.1f} | |"]

    def add(self, label: str, measured: Measured, at_most: str) -> None:
        ratio = measured.seconds / self._unit.seconds
        self._lines.append(f"| {label} | {ratio:.2f} | {measured.peak_gb:.1f} | {at_most} |")

    def __str__(self) -> str:
        return "\n".join(["| step | x bare | peak GB | at most |", "|---|---|---|---|", *self._lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=25_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--step", choices=list(STEPS))
    chosen = parser.parse_args()
    if chosen.step:
        took = STEPS[chosen.step](chosen.folder)
        seconds, docs_seconds = took if isinstance(took, tuple) else (took, 0.0)
        # getrusage would begin with what the parent held when it started this process
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        peak_gb = int(status.split("VmHWM:")[1].split()[0]) / 1e6
        print(json.dumps({"seconds": seconds, "peak_gb": peak_gb, "docs_seconds": docs_seconds}))
        return
    text = run(chosen.folder, chosen.rows)
    shutil.rmtree(chosen.folder)
    print(text)
    if chosen.report:
        chosen.report.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
