"""A command that is stopped or killed at any moment, or finds a full disk, leaves a home in which the same command works."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import polars as pl
import pytest

from tests.system import processes
from tests.system.product import (
    ROOT,
    environment,
    finjepa,
    is_one_line,
    quick_training,
    start,
    wait_until,
    works,
    write_prices,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

SEED = int(os.environ.get("FINJEPA_TEST_SEEDS", "0"))
ROUNDS = int(os.environ.get("FINJEPA_TEST_ROUNDS", "5"))
# Starts a run that holds the pool `duckdb`, and lives until its standard input is closed.
HOLD = """
import os, sys
import dagster as dg
from finjepa_pipeline.runs import locked
from finjepa_pipeline.runner import open_instance
from finjepa_pipeline.settings import Settings
settings = Settings.from_env().ensure()
with open_instance(settings) as instance, locked(settings.dagster / "commands", "00000000-0000-0000-0000-000000000001") as tags:
    storage = instance.event_log_storage
    storage.initialize_concurrency_limit_to_default("duckdb")
    run = instance.create_run_for_job(
        dg.job(name="ingest")(lambda: None), run_id="00000000-0000-0000-0000-000000000001", tags=tags,
        status=dg.DagsterRunStatus.STARTED,
    )
    assert storage.claim_concurrency_slot("duckdb", run.run_id, "ingest_prices").is_claimed
    print("holds", flush=True)
    sys.stdin.read()
"""


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Reads what a command prints up to a text."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    seen = [""]

    def found() -> bool:
        assert process.poll() is None, seen[0]
        with contextlib.suppress(BlockingIOError):
            seen[0] += os.read(process.stdout.fileno(), 1 << 16).decode(errors="replace")
        return text in seen[0]

    wait_until(found, told=lambda: seen[0])
    os.set_blocking(process.stdout.fileno(), True)


def nothing_is_left(process: subprocess.Popen[str], seconds: float = 30) -> None:
    wait_until(lambda: not processes.of_session(process.pid), seconds)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], env=environment(tmp_path / "home"), cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.wait()


def test_a_living_holder_is_named_a_signal_ends_the_wait_and_a_dead_one_is_no_obstacle(tmp_path, holder):
    source = ["--data-source", "synthetic", "--synthetic-assets", "3", "--synthetic-sessions", "600"]
    home = tmp_path / "home"
    waiting = start(home, "ingest", *source)
    read_until(waiting, "ingest_prices waits for")
    time.sleep(1)
    waiting.send_signal(signal.SIGTERM)
    told = waiting.communicate(timeout=20)[0]
    is_one_line(waiting.returncode, told, "finjepa: interrupted")
    nothing_is_left(waiting)
    holder.kill()
    done = finjepa(home, "ingest", *source)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "has no process any more" in done.stderr


@pytest.mark.slow
def test_after_an_interruption_the_command_that_is_named_goes_on_with_the_training(tmp_path):
    home, prices = tmp_path / "home", write_prices(tmp_path / "prices")
    long = quick_training(**{"training.epochs": "200", "training.steps_per_epoch": "50"})
    arguments = ["train", "--data-source", "files", "--path", str(prices), *long]
    training = start(home, *arguments)
    read_until(training, "step/s]")
    time.sleep(3)
    os.killpg(training.pid, signal.SIGINT)  # as a terminal does
    told = training.communicate(timeout=60)[0]
    is_one_line(training.returncode, told, "its state is saved; `finjepa train --data-source files")
    nothing_is_left(training)
    step = int(told.partition("stopped at step ")[2].split()[0])
    assert step > 0
    again = start(home, *arguments)
    read_until(again, f"| {step}/10000 ")  # where the progress bar begins
    again.send_signal(signal.SIGTERM)
    assert "its state is saved" in again.communicate(timeout=60)[0]
    nothing_is_left(again)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_command_killed_at_a_random_moment_works_when_it_is_run_again(tmp_path):
    """FINJEPA_TEST_SEEDS: which draw of moments; FINJEPA_TEST_ROUNDS: how many rounds of four commands."""
    home, random_ = tmp_path / "home", random.Random(SEED)
    whole = write_prices(tmp_path / "whole", sessions=900 + 10 * ROUNDS)
    market, prices = pl.read_parquet(whole / "*.parquet"), tmp_path / "prices"
    days = market["date"].unique().sort()
    prices.mkdir()
    lengths: dict[str, float] = {}
    killed = []
    for number in range(ROUNDS):
        rows = market.filter(pl.col("date") < days[900 + 10 * number])
        rows.write_parquet(prices / "prices.parquet")
        source = ["--data-source", "files", "--path", str(prices)]
        for command in (
            ["ingest", *source],
            ["train", *source, *quick_training(), "--set", f"training.seed={number}"],
            ["backtest", "--planner", "mppi", "--controls", "none"],
            ["publish"],
        ):
            process = start(home, *command)
            moment = random_.uniform(0.5, lengths.get(command[0], 20.0))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=moment)
            if process.poll() is None:
                alone = random_.random() < 0.5
                killed.append((command[0], round(moment, 1), "parent" if alone else "group"))
                (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
                process.wait()
            began = time.monotonic()
            done = finjepa(home, *command, timeout=400)
            lengths[command[0]] = time.monotonic() - began
            assert done.returncode == 0, (killed, done.stderr[-3000:])
            nothing_is_left(process)
        with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as con:
            stored = con.execute("SELECT symbol, date::VARCHAR, close FROM prices ORDER BY ALL").fetchall()
        assert stored == rows.select("symbol", "date", "close").sort("symbol", "date").rows(), killed


@pytest.fixture
def disk(tmp_path):
    """A file system of 256 MB: the markets that an audit simulates need some."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, free_kb: int) -> Path:
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - (free_kb << 10))
    return filler


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_on_a_full_disk(disk, tmp_path):
    home, prices = disk / "home", write_prices(tmp_path / "prices")
    source = ["--data-source", "files", "--path", str(prices)]
    for command in (
        ["ingest", *source],
        ["train", *source, *quick_training()],
        ["backtest", "--planner", "mppi", "--controls", "none"],
        ["publish"],
        ["decide"],
    ):
        for free_kb in (0, 100, 1000):
            filler = fill(disk, free_kb)
            done = finjepa(home, *command)
            if free_kb < 1000:  # which is enough for some of them
                is_one_line(done.returncode, done.stderr, "the disk of", "is full")
            filler.unlink()
        works(home, *command)
    fill(disk, 0)
    assert "freed" in works(home, "clean", "--keep", "1")
