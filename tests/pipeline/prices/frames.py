"""Made-up prices in the Hub schema."""

import datetime

import numpy as np
import polars as pl

from finjepa_pipeline.prices.calendar import sessions

PLACE = pl.int_range(pl.len())  # the number of a row
DAY = PLACE.over("symbol")
OHLC = ("open", "high", "low", "close")


def prices(symbols: tuple[str, ...] = ("AAA", "BBB", "CCC"), days: int = 40, seed: int = 0) -> pl.DataFrame:
    """Sound rows: OHLC in order, volumes of thousands, adj_close below close by a constant factor."""
    random = np.random.default_rng(seed)
    return pl.concat([bars(symbol, session_days(days), random) for symbol in symbols])


def bars(symbol: str, dates: list[str], random: np.random.Generator) -> pl.DataFrame:
    """Of one symbol on given days."""
    close = 50 * np.exp(np.cumsum(random.normal(0, 0.01, len(dates))))
    open_ = close * np.exp(random.normal(0, 0.003, len(dates)))
    return pl.DataFrame(
        {
            "symbol": symbol,
            "date": dates,
            "open": open_,
            "high": np.maximum(open_, close) * 1.004,
            "low": np.minimum(open_, close) * 0.996,
            "close": close,
            "volume": random.integers(1_000, 9_000, len(dates)) * 1_000,
            "adj_close": close * 0.9,
        }
    )


def replaced(rows: pl.DataFrame, hit: pl.Expr, **values: object) -> pl.DataFrame:
    """The rows with other values, or expressions, of these columns where `hit` holds."""
    return rows.with_columns(pl.when(hit).then(value).otherwise(name).alias(name) for name, value in values.items())


def session_days(days: int, start: datetime.date = datetime.date(2021, 1, 4)) -> list[str]:
    """ISO dates of the first `days` New York sessions from `start`."""
    return [date.isoformat() for date in sessions("XNYS") if date >= start][:days]
