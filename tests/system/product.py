"""The product as a user has it: a home, a command, prices in a folder."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exchange_calendars
import numpy as np
import polars as pl

COMMANDS = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
QUICK = {
    "training.epochs": "2", "training.steps_per_epoch": "12", "training.batch_size": "8", "training.n_assets": "4",
    "training.evaluate_batches": "1", "model.window": "32",
}  # fmt: skip


def environment(home: Path, **more: str) -> dict[str, str]:
    """Nothing of this machine's homes or tokens."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FINJEPA_", "DAGSTER_", "HF_"))}
    one = {"FINJEPA_COMPUTE": "local:1", "OMP_NUM_THREADS": "1"}  # others work on this machine too
    return kept | one | {"FINJEPA_HOME": str(home), "HF_HUB_OFFLINE": "1"} | more


def finjepa(home: Path, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMANDS / "finjepa", *arguments],
        env=environment(home), cwd=ROOT, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def works(home: Path, *arguments: str, timeout: float = 240) -> str:
    """What a command that must end well prints on standard output."""
    done = finjepa(home, *arguments, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def start(home: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """A command in a session of its own, both streams in one pipe."""
    return subprocess.Popen(
        [COMMANDS / "finjepa", *arguments],
        env=environment(home, **more), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def is_one_line(status: int, stderr: str, *named: str) -> None:
    """A user's mistake: status 1, one line that names it, no trace."""
    told = [line for line in stderr.splitlines() if line.startswith(("finjepa: ", "Error: "))]
    assert (status, len(told)) == (1, 1), stderr[-2000:]
    assert "Traceback" not in stderr, stderr
    assert "unexpected" not in told[0]
    assert all(name in told[0] for name in named), told


def quick_training(**changes: str) -> list[str]:
    return ["--preset", "tiny", *assignments(QUICK | changes)]


def assignments(changes: dict[str, str]) -> list[str]:
    return [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]


def wait_until(
    ready: Callable[[], Any], seconds: float = 240, told: Callable[[], str] = str, every: float = 0.1
) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, told()
        time.sleep(every)


def write_prices(folder: Path, symbols: int = 6, sessions: int = 900, seed: int = 0) -> Path:
    """Prices of a random market in the Hub schema, two shards."""
    calendar = exchange_calendars.get_calendar("XNYS", start="2010-01-01", end="2020-12-31")
    days = [day.date().isoformat() for day in calendar.sessions[:sessions]]
    random = np.random.default_rng(seed)
    market = 0.008 * random.standard_normal(sessions)
    frames = []
    for number in range(symbols):
        returns = market + 0.012 * random.standard_normal(sessions)
        close = 50 * np.exp(np.cumsum(returns - returns.var() / 2))
        open_ = close * np.exp(0.003 * random.standard_normal(sessions))
        columns = {
            "symbol": [f"S{number:02d}"] * sessions,
            "date": days,
            "open": open_,
            "high": np.maximum(open_, close) * 1.004,
            "low": np.minimum(open_, close) * 0.996,
            "close": close,
            "volume": random.integers(1_000_000, 2_000_000, sessions),
            "adj_close": close,
        }
        frames.append(pl.DataFrame(columns))
    folder.mkdir(parents=True)
    half = symbols // 2
    pl.concat(frames[:half]).write_parquet(folder / "train-00000-of-00002.parquet")
    pl.concat(frames[half:]).write_parquet(folder / "train-00001-of-00002.parquet")
    return folder
