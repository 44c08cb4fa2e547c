"""Two nightly runs on a whole market: what each step takes of the clock, the processors, the memory and the disk.

    python benchmarks/night.py --folder FOLDER [--rows 25.3e6] [--preset small] [--steps FIRST SECOND]

A vendor delivers a synthetic market (delistings, splits, dividends, changed and reused tickers, bad rows) as Parquet files. The
job `nightly` runs on them, up to a decision and a release in the home. Then the vendor delivers everything again, adjusted to one
more day, and the job runs once more. After each night, `finjepa clean` runs. The same command goes on where an interrupted one
was. Results are in FOLDER/night.json, and printed as Markdown.

Each step runs in a process of its own, as under the schedule. Its processor seconds and memory are those of that process and of
all below it, looked at four times a second.
"""

import argparse
import fcntl
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pyarrow.parquet as pq
import yaml
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES
from tqdm import tqdm

from finjepa_model.training.run_folder import read_metrics
from finjepa_pipeline.definitions import defs
from finjepa_pipeline.prices.synthetic import SyntheticConfig, generate, write_bars
from finjepa_pipeline.runner import open_instance
from finjepa_pipeline.runs import end_lost_runs
from finjepa_pipeline.settings import Settings

NIGHTS = ("first", "second")
SESSIONS, ROWS_A_SYMBOL = 5_950, 3_614  # assets come late and leave
BAD = 1e-5  # share of the rows with each kind of fault
EVERY_S, TICKS = 0.25, os.sysconf("SC_CLK_TCK")
TRAINING = "finjepa_pipeline.training.process"
Record = dict[str, Any]


def make_market(folder: Path, symbols: int) -> None:
    """The bars of a market, as the source `synthetic` makes them."""
    write_bars(generate(SyntheticConfig("risk", assets=symbols, sessions=SESSIONS)), folder)


def deliver(market: Path, folder: Path, sessions_short: int) -> None:
    """What a vendor has so many sessions before the end of the market: all history, adjusted to the newest close."""
    files = sorted(market.glob("*.parquet"))
    days = pl.scan_parquet(files).select(pl.col("date").unique()).collect()["date"].sort()
    folder.mkdir()
    for file in tqdm(files, desc="delivery", unit="file"):
        known = pl.read_parquet(file).filter(pl.col("date") <= days[-1 - sessions_short])
        delivered(known).write_parquet(folder / file.name, compression="zstd")


def delivered(bars: pl.DataFrame) -> pl.DataFrame:
    """Bars as a vendor writes them: rounded, one symbol in a hundred with another ticker until some day, and with faults, which
    follow from symbol and day, so that every delivery has the same ones."""
    draw = pl.struct("symbol", "date").hash() / 2.0**64
    close, adjusted, low = pl.col("close"), pl.col("adj_close"), pl.col("low")
    date, symbol = pl.col("date"), pl.col("symbol")

    def faulty(kind: int) -> pl.Expr:
        return draw.is_between(kind * BAD, (kind + 1) * BAD, closed="left")

    def but(column: str, kind: int, fault: Any) -> pl.Expr:
        return pl.when(faulty(kind)).then(fault).otherwise(pl.col(column)).alias(column)

    was_renamed = (symbol.hash(1) % 100 == 0) & (date < pl.format("20{}-06-30", symbol.hash(2) % 10 + 10))
    sunday = date.str.to_date().dt.truncate("1w").dt.offset_by("-1d").dt.to_string("%Y-%m-%d")
    bars = bars.with_columns(adj_close=adjusted * (close / adjusted).last().over("symbol"))
    bars = bars.with_columns(pl.selectors.float().round(6))
    bars = bars.with_columns(
        but("high", 0, low / 2), but("volume", 1, -1), but("adj_close", 2, None), but("date", 3, sunday)
    )
    twice = bars.filter(faulty(4))
    return pl.concat([bars, twice]).with_columns(
        pl.when(faulty(5)).then(0.0).when(faulty(6)).then(10 * close).otherwise(close).alias("close"),
        pl.when(was_renamed).then(pl.format("OLD{}", symbol.str.slice(3))).otherwise(symbol).alias("symbol"),
    )


# Processes


def processes() -> dict[int, tuple[int, str]]:
    """Parent and state line of every process."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "stat").read_text().rpartition(")")[2]
            except OSError:  # it has ended
                continue
            found[int(folder.name)] = (int(line.split()[1]), line)
    return found


class Watch:
    """The processes below this one: their processor seconds, and their memory, which is what is not shared with files."""

    def __init__(self) -> None:
        self.seen: dict[int, Record] = {}
        self.peak_gb = 0.0  # of all of them together

    def look(self) -> None:
        table, total_gb = processes(), 0.0
        below = {os.getpid()}
        while found := {pid for pid, (parent, _) in table.items() if parent in below} - below:
            below |= found
        for pid in below - {os.getpid()}:
            try:
                status = dict(
                    line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "kB" in line
                )
                command = Path(f"/proc/{pid}/cmdline").read_text()
            except OSError:
                continue
            if "VmRSS" not in status:  # it has ended
                continue
            fields = table[pid][1].split()
            one = self.seen.setdefault(pid, {"parent": table[pid][0], "peak_gb": 0.0, "began": time.time()})
            own_gb = (int(status["RssAnon"].split()[0]) + int(status["RssShmem"].split()[0])) / 1e6
            one |= {
                "command": command,
                "cpu_s": (int(fields[11]) + int(fields[12])) / TICKS,
                "peak_gb": max(one["peak_gb"], own_gb),
                "rss_gb": int(status["VmHWM"].split()[0]) / 1e6,
                "ended": time.time(),
            }
            total_gb += own_gb
        self.peak_gb = max(self.peak_gb, total_gb)

    def below(self, pid: int) -> list[int]:
        """A process and all that came from it."""
        found = [pid]
        for one in found:
            found += [child for child, row in self.seen.items() if row["parent"] == one]
        return found


# A night


def run_night(folder: Path, home: Settings, steps: int | None, name: str) -> Record:
    """Run the job `nightly` as an operator's configuration has it, and watch it."""
    model: Record = {"preset": name}
    if steps is not None:
        model["overrides"] = {"training.epochs": "1", "training.steps_per_epoch": str(steps)}
    ops = {"ingest_prices": {"data_source": "files", "path": str(folder / "prices")}, "world_model": model}
    home.nightly_config.write_text(yaml.safe_dump({"ops": {op: {"config": config} for op, config in ops.items()}}))
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "finjepa_pipeline.definitions", "-j", "nightly"]
    watch, started = Watch(), time.time()
    load: list[float] = []
    with open_instance(home) as instance, (folder / "run.log").open("a") as log:
        for run in instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS_RUN_STATUSES)):  # of an interrupted night
            instance.report_run_failed(run)
        end_lost_runs(instance)
        job = subprocess.Popen([*command, "-c", str(home.nightly_config)], stdout=log, stderr=log)
        bar, looked = tqdm(desc="night", unit="step", total=len(defs.resolve_job_def("nightly").nodes)), 0.0
        while job.poll() is None:
            watch.look()
            if time.time() - started >= 60 * len(load):
                load.append(os.getloadavg()[0])
            if time.time() - looked > 5:
                show(bar, instance, home)
                looked = time.time()
            time.sleep(EVERY_S)
        bar.close()
        if job.returncode:
            raise SystemExit(f"the night failed; see {folder / 'run.log'}, and run the same command again to go on")
        [run] = instance.get_runs(dg.RunsFilter(job_name="nightly"), limit=1)
        pids = {
            event.step_key: int(event.engine_event_data.metadata["pid"].value)
            for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_WORKER_STARTED)
            if (event := entry.dagster_event)
        }
        rows = [
            step_row(watch, stats.step_key, pids[stats.step_key], stats.start_time, stats.end_time)
            for stats in sorted(instance.get_run_step_stats(run.run_id), key=lambda stats: stats.start_time)
        ]
    return {
        "wall_s": time.time() - started,
        "cpu_s": sum(row["cpu_s"] for row in watch.seen.values()),
        "peak_gb": watch.peak_gb,
        "steps": rows,
        "load": load,
    }


def show(bar: tqdm, instance: dg.DagsterInstance, home: Settings) -> None:
    """Steps that are done, those that run, and how far a training is."""
    for run in instance.get_runs(dg.RunsFilter(job_name="nightly", statuses=IN_PROGRESS_RUN_STATUSES), limit=1):
        stats = instance.get_run_step_stats(run.run_id)
        bar.n = sum(one.end_time is not None for one in stats)
        running = [one.step_key for one in stats if one.end_time is None]
        if "world_model" in running and (folders := sorted(home.checkpoints.glob("*.run"), key=os.path.getmtime)):
            records = list(read_metrics(folders[-1]))
            running.append(f"training step {records[-1]['step']}" if records else "")
        bar.set_postfix_str(", ".join(running))


def step_row(watch: Watch, step: str, pid: int, began: float, ended: float) -> Record:
    found = {one: watch.seen[one] for one in watch.below(pid) if one in watch.seen}
    training = [row for row in found.values() if TRAINING in row["command"]]
    return {
        "step": step,
        "wall_s": ended - began,
        "training_s": sum(row["ended"] - row["began"] for row in training),
        "cpu_s": sum(row["cpu_s"] for row in found.values()),
        "training_cpu_s": sum(row["cpu_s"] for row in training),
        "peak_gb": max((row["peak_gb"] for row in found.values()), default=0.0),
        "rss_gb": max((row["rss_gb"] for row in found.values()), default=0.0),
    }


def sizes(folder: Path) -> dict[str, float]:
    """MB on disk, by what lies in a folder."""

    def size(path: Path) -> int:
        files = [path] if path.is_file() else path.rglob("*")
        return sum(file.lstat().st_blocks * 512 for file in files if not file.is_symlink())

    return {path.name: size(path) / 1e6 for path in sorted(folder.iterdir())}


def whole_night(folder: Path, steps: int | None, name: str) -> Record:
    home = Settings.from_env().ensure()
    found = run_night(folder, home, steps, name)
    before = sizes(home.home)
    subprocess.run([sys.executable, "-m", "finjepa_pipeline", "clean"], check=True, stdout=subprocess.DEVNULL)
    return found | {"training_steps": steps, "disk_mb": before, "cleaned_mb": sizes(home.home)}


# All of it


def once(path: Path, make: Callable[[Path], object]) -> None:
    """Make a folder, in a process of its own, unless it is there whole."""
    if not path.exists():
        beside = path.with_name(f"{path.name}.part")
        shutil.rmtree(beside, ignore_errors=True)
        make(beside)
        beside.rename(path)


def alone(function: Callable[..., object], *arguments: Any) -> None:
    """Call in a process of its own, which gives its memory back."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} failed")


def run(folder: Path, rows: int, name: str, steps: list[int]) -> Record:
    file = folder / "night.json"
    state: Record = json.loads(file.read_text()) if file.is_file() else {"rows": rows, "preset": name, "nights": {}}
    if (state["rows"], state["preset"]) != (rows, name):
        raise SystemExit(f"{folder} is of {state['rows']} rows and the preset {state['preset']}; name another folder")
    once(folder / "market", lambda beside: alone(make_market, beside, max(rows // ROWS_A_SYMBOL, 2)))
    for k, night in enumerate(NIGHTS):
        found = state["nights"].setdefault(night, {"interrupted": -1})
        if "steps" in found:
            continue
        once(folder / f"delivery-{night}", lambda beside, k=k: alone(deliver, folder / "market", beside, 1 - k))
        prices = folder / "prices"  # the vendor's folder, whose content changes
        prices.unlink(missing_ok=True)
        prices.symlink_to(folder / f"delivery-{night}")
        found["interrupted"] += 1
        file.write_text(json.dumps(state, indent=1))
        found["rows"] = sum(pq.read_metadata(file).num_rows for file in prices.glob("*.parquet"))
        found |= whole_night(folder, steps[min(k, len(steps) - 1)] or None, name)
        file.write_text(json.dumps(state, indent=1))
    return state


def report(state: Record) -> str:
    lines = [f"Preset `{state['preset']}`, {os.cpu_count()} cores."]
    for name, night in state["nights"].items():
        training = sum(row["training_s"] for row in night["steps"])
        processor = sum(row["training_cpu_s"] for row in night["steps"])
        load = sorted(night["load"])
        lines += [
            f"\n## {name.capitalize()} night, {night['rows']:,} rows\n",
            f"{night['wall_s'] / 60:.1f} min, of which training {training / 60:.1f}; {night['cpu_s'] / 60:.1f} min of "
            f"processors, of which training {processor / 60:.1f}. Most memory at once: {night['peak_gb']:.1f} GB. Load "
            f"{load[0]:.1f} to {load[-1]:.1f}, median {load[len(load) // 2]:.1f}. Steps of training: "
            f"{night['training_steps'] or 'those of the preset'}. Interrupted {night['interrupted']} times (times are of the "
            "last attempt).\n",
            "| step | wall, s | processors, s | own memory of its largest process, GB | with mapped files, GB |",
            "|---|--:|--:|--:|--:|",
        ]
        lines += [
            f"| `{row['step']}` | {row['wall_s']:.1f} | {row['cpu_s']:.1f} | {row['peak_gb']:.2f} | {row['rss_gb']:.2f} |"
            for row in night["steps"]
        ]
    lines += [
        "\n## MB on disk\n",
        "| | " + " | ".join(f"{night}, before clean | after" for night in state["nights"]) + " |",
    ]
    lines += ["|---|" + "--:|--:|" * len(state["nights"])]
    columns = [night[when] for night in state["nights"].values() for when in ("disk_mb", "cleaned_mb")]
    names = sorted({name for column in columns for name in column}, key=lambda name: -columns[-1].get(name, 0))
    lines += [f"| {name} | " + " | ".join(f"{column.get(name, 0):.1f}" for column in columns) + " |" for name in names]
    lines += ["| all | " + " | ".join(f"{sum(column.values()):.1f}" for column in columns) + " |"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=lambda text: int(float(text)), default=25_300_000)
    parser.add_argument("--preset", default="small")
    parser.add_argument(
        "--steps",
        type=int,
        nargs="+",
        default=[0],
        help="of training, in the first and the second night; 0: the preset's",
    )
    chosen = parser.parse_args()
    folder = chosen.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.pop("DAGSTER_HOME", None)
    os.environ["FINJEPA_HOME"] = str(folder / "home")
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another process works in {folder}") from None
        print(report(run(folder, chosen.rows, chosen.preset, chosen.steps)), flush=True)
    os._exit(0)  # without taking the interpreter apart: DuckDB's module would list its objects


if __name__ == "__main__":
    main()
