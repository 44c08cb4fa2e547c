"""From adjusted prices to a panel: one function, whether the panel lies on a disk or in memory.

The prices come in runs of whole assets. As they come, they make returns and masks and from them the market; then the channels,
which need the market, are computed run by run.

Shape suffixes: D sessions, A assets, N observations of a run in a row, F channels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from finjepa_model.data.panel import FORMAT
from finjepa_model.errors import FinJEPAError
from finjepa_model.features.channels import Channel, available, channel_values
from finjepa_model.features.market import (
    MARKET_CHANNELS,
    SUMS,
    co_movement,
    liquidity_ranks,
    market_inputs,
    market_values,
    proxy_returns,
    session_series,
    session_sums,
)

PRICE_COLUMNS = ("open", "high", "low", "volume", "dollar_volume")
ARRAYS = {"returns": np.float32, "liquidity": np.float32, "beta": np.float32, "observed": np.bool_, "tradable": np.bool_,
          "eligible": np.bool_}  # fmt: skip

Allocate = Callable[[str, type, tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class AdjustedPrices:
    """Adjusted prices of a market."""

    assets: list[str]  # in ascending order
    dates: np.ndarray  # datetime64[D], the sessions
    first_A: np.ndarray  # session of an asset's first observation
    last_A: np.ndarray
    delisting_return_A: np.ndarray  # what a holder gets beyond the last close of an asset that has ended
    columns: frozenset[str]  # price columns that hold anything, `close` included
    # the observations, in order of asset and date, whole assets at a time: asset and session (numbers), the price columns
    # (float64, null where missing), tradable, eligible and event (bool)
    runs: Callable[[], Iterable[pl.DataFrame]]


def choose(columns: frozenset[str], names: Iterable[str] = ()) -> tuple[Channel, ...]:
    """The named channels, or all that these columns allow, in the order of the table.

    Raises:
        FinJEPAError: if a name is unknown, or not possible with these columns.
    """
    possible = available(columns)
    names = tuple(names)
    missing = sorted(set(names) - {channel.name for channel in possible})
    if missing:
        raise FinJEPAError(
            f"channels: {', '.join(missing)} cannot be made of the columns {', '.join(sorted(columns))}; "
            f"possible are {', '.join(channel.name for channel in possible)}"
        )
    return tuple(channel for channel in possible if not names or channel.name in names)


def fill_panel(prices: AdjustedPrices, channels: tuple[Channel, ...], allocate: Allocate) -> dict[str, Any]:
    """Fill the arrays of a panel (finjepa_model/data/panel.py) and return its manifest.

    Args:
        allocate: makes an array of zeros by name, type and shape.
    """
    lengths_A = prices.last_A - prices.first_A + 1
    offsets_A = np.cumsum(lengths_A) - lengths_A
    rows, sessions = int(lengths_A.sum()), len(prices.dates)
    arrays = {name: allocate(name, dtype, (rows,)) for name, dtype in ARRAYS.items()}
    arrays["features"] = allocate("features", np.float32, (rows, len(channels)))
    arrays["beta"][:] = 1.0
    sums_KD = np.zeros((len(SUMS), sessions))
    returns_DA, liquidity_DA = np.full((2, sessions, len(prices.assets)), np.nan, np.float32)
    runs: list[pl.DataFrame] = []
    for run in prices.runs():
        asset_N, session_N = run["asset"].to_numpy(), run["session"].to_numpy()
        inputs = market_inputs(run)
        sums_KD += session_sums(inputs, sessions)
        returns_N, eligible_N = inputs["returns"].to_numpy(), run["eligible"].to_numpy()
        returns_DA[session_N, asset_N] = returns_N
        liquidity_DA[session_N, asset_N] = np.where(eligible_N, inputs["liquidity"].to_numpy(), np.nan)
        at_N = offsets_A[asset_N] + session_N - prices.first_A[asset_N]
        known = {"returns": np.nan_to_num(returns_N), "liquidity": inputs["liquidity"].to_numpy(), "observed": True}
        for name, values in (known | {"tradable": run["tradable"].to_numpy(), "eligible": eligible_N}).items():
            arrays[name][at_N] = values
        runs.append(run)
    series = session_series(prices.dates, sums_KD, co_movement(returns_DA, liquidity_DA))
    del returns_DA
    ranks_DA = liquidity_ranks(liquidity_DA)
    market_return_D = series["log_return"].fill_null(0.0).to_numpy()
    while runs:
        run = runs.pop(0)
        asset_N, session_N = run["asset"].to_numpy(), run["session"].to_numpy()
        values = channel_values(
            run.with_columns(
                pl.Series("market_return", market_return_D[session_N]),
                pl.Series("liquidity_rank", ranks_DA[session_N, asset_N], pl.Float64).fill_nan(None),
            ),
            channels,
        )
        start, stop = int(offsets_A[asset_N[0]]), int(offsets_A[asset_N[-1]] + lengths_A[asset_N[-1]])
        at_N = offsets_A[asset_N] + session_N - prices.first_A[asset_N] - start
        for name, columns in (("beta", values["beta"]), ("features", values.drop("beta"))):
            arrays[name][start:stop][at_N] = columns.to_numpy()
    allocate("market_returns", np.float32, (sessions,))[:] = proxy_returns(sums_KD)
    allocate("market_features", np.float32, (sessions, len(MARKET_CHANNELS)))[:] = market_values(series)
    return {
        "format": FORMAT,
        "columns": sorted(prices.columns),
        "channels": [channel.row() for channel in channels],
        "market_channels": [channel.row() for channel in MARKET_CHANNELS],
        "dates": [str(date) for date in prices.dates],
        "assets": prices.assets,
        "delisting_return": prices.delisting_return_A.tolist(),
        "offsets": offsets_A.tolist(),
        "first": prices.first_A.tolist(),
        "lengths": lengths_A.tolist(),
    }
