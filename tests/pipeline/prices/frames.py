"""Made-up prices in the Hub schema."""

import datetime

import numpy as np
import polars as pl

from finjepa_pipeline.prices.calendar import sessions


def prices(symbols: tuple[str, ...] = ("AAA", "BBB", "CCC"), days: int = 40, seed: int = 0) -> pl.DataFrame:
    """Sound rows: OHLC in order, volumes of thousands, adj_close below close by a constant factor."""
    random = np.random.default_rng(seed)
    dates = session_days(days)
    frames = []
    for symbol in symbols:
        close = 50 * np.exp(np.cumsum(random.normal(0, 0.01, days)))
        open_ = close * np.exp(random.normal(0, 0.003, days))
        frames.append(
            pl.DataFrame(
                {
                    "symbol": [symbol] * days,
                    "date": dates,
                    "open": open_,
                    "high": np.maximum(open_, close) * 1.004,
                    "low": np.minimum(open_, close) * 0.996,
                    "close": close,
                    "volume": random.integers(1_000, 9_000, days) * 1_000,
                    "adj_close": close * 0.9,
                }
            )
        )
    return pl.concat(frames)


def session_days(days: int, start: datetime.date = datetime.date(2021, 1, 4)) -> list[str]:
    """ISO dates of the first `days` New York sessions from `start`."""
    return [date.isoformat() for date in sessions("XNYS") if date >= start][:days]
