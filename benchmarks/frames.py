"""How long a forecast and a decision from a frame take: 500 symbols, three years, one core.

    OMP_NUM_THREADS=1 POLARS_MAX_THREADS=1 python benchmarks/frames.py [--preset small] [--symbols 500] [--sessions 756]

Prints processor seconds, each the median of five, beside those of a sample covariance of the same returns and those of the
parts; with one thread they are what a user waits on a quiet machine. The model is not trained: weights do not change the time.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from finjepa_model import FinJEPA
from finjepa_model.config import preset
from finjepa_model.features import CHANNELS, MARKET_CHANNELS, read_prices
from finjepa_model.forecast import FrameMarket

_WHOLE = """
import sys, torch
torch.set_num_threads(1)
import pandas as pd
from finjepa_model import FinJEPA
print(FinJEPA.from_pretrained(sys.argv[1]).forecast(pd.read_pickle(sys.argv[2])).volatility.shape)
"""


def download(symbols: int, sessions: int) -> pd.DataFrame:
    """As yfinance gives it: fields above symbols."""
    random = np.random.default_rng(0)
    returns_DA = random.normal(0, 0.01, (sessions, 1)) + random.normal(0, 0.01, (sessions, symbols))
    index = pd.bdate_range("2019-01-01", periods=sessions, name="Date")
    close = pd.DataFrame(50 * np.exp(returns_DA.cumsum(0)), index, [f"S{number:03d}" for number in range(symbols)])
    fields = {"Adj Close": 0.9, "Close": 1.0, "High": 1.01, "Low": 0.99, "Open": 1.001}
    frames = {name: close * factor for name, factor in fields.items()}
    frames["Volume"] = close * 0 + random.integers(1_000_000, 9_000_000, close.shape)
    return pd.concat(frames, axis=1, names=["Price", "Ticker"])


def median_s(function: Callable[[], object]) -> float:
    seconds = []
    for _ in range(5):
        start = processor_s()
        function()
        seconds.append(processor_s() - start)
    return statistics.median(seconds)


def processor_s() -> float:
    """Of this process and of those that it has started."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--symbols", type=int, default=500)
    parser.add_argument("--sessions", type=int, default=756)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = preset(given.preset)
    channels = tuple(channel.name for channel in CHANNELS)
    market = tuple(channel.name for channel in MARKET_CHANNELS)
    model = FinJEPA(replace(config, model=replace(config.model, channels=channels, market_channels=market))).eval()
    prices = download(given.symbols, given.sessions)
    returns = prices["Adj Close"].pct_change().iloc[1:].to_numpy()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        prices.to_pickle(Path(folder, "prices.pkl"))
        whole = [sys.executable, "-c", _WHOLE, folder, str(Path(folder, "prices.pkl"))]
        seconds = {
            "sample covariance": median_s(lambda: np.cov(returns, rowvar=False)),
            "read_prices": median_s(lambda: read_prices(prices)),
            "read_prices and the panel": median_s(lambda: FrameMarket.of(prices, model.config)),
            "forecast": median_s(lambda: model.forecast(prices)),
            "decide, qp": median_s(lambda: model.decide(prices)),
            "decide, mppi": median_s(lambda: model.decide(prices, planner="mppi")),
            "decide, cem": median_s(lambda: model.decide(prices, planner="cem")),
            "forecast with imports and loading": median_s(
                lambda: subprocess.run(whole, check=True, capture_output=True)
            ),
        }
    for name, value in seconds.items():
        print(f"{name:35} {value:7.3f} s  {value / seconds['sample covariance']:8.1f} times a sample covariance")


if __name__ == "__main__":
    main()
