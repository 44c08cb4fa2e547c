"""The product as a user has it: a home, a command, prices in a folder."""

import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import exchange_calendars
import numpy as np
import polars as pl

COMMANDS = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
QUICK = {
    "training.epochs": "2", "training.steps_per_epoch": "12", "training.batch_size": "8", "training.n_assets": "4",
    "training.evaluate_batches": "1", "model.window": "32",
}  # fmt: skip


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FINJEPA_", "DAGSTER_", "HF_"))}
    one = {"FINJEPA_COMPUTE": "local:1", "OMP_NUM_THREADS": "1"}  # others work on this machine too
    return kept | one | {"FINJEPA_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def finjepa(home: Path, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMANDS / "finjepa", *arguments],
        env=environment(home),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def quick_training() -> list[str]:
    return ["--preset", "tiny", *(part for key, value in QUICK.items() for part in ("--set", f"{key}={value}"))]


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
        frames.append(
            pl.DataFrame(
                {
                    "symbol": [f"S{number:02d}"] * sessions,
                    "date": days,
                    "open": open_,
                    "high": np.maximum(open_, close) * 1.004,
                    "low": np.minimum(open_, close) * 0.996,
                    "close": close,
                    "volume": random.integers(1_000_000, 2_000_000, sessions),
                    "adj_close": close,
                }
            )
        )
    folder.mkdir(parents=True)
    half = symbols // 2
    pl.concat(frames[:half]).write_parquet(folder / "train-00000-of-00002.parquet")
    pl.concat(frames[half:]).write_parquet(folder / "train-00001-of-00002.parquet")
    return folder


def is_iso_date(text: str) -> bool:
    return date.fromisoformat(text).isoformat() == text
