"""Daily bars of a synthetic market in the Hub schema.

Shape suffixes: D sessions, A assets, S steps within a day, N rows.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from finjepa_pipeline.prices.synthetic.market import SyntheticMarket

STEPS = 32  # of the path within a day that open, high, low and close are read from
BLOCK_ASSETS = 50
STALE = 0.01  # share of sessions without a trade
DIVIDEND = 0.005  # of the price, once a quarter
REUSED = 0.1  # share of delisted symbols that another company takes over
SPLIT_ABOVE, MERGE_BELOW = 200.0, 2.0
TICK, LEAST_HALF_SPREAD = 0.005, 0.0002  # half a cent, and 2 bp: what buying costs above and selling below the price


def write_bars(market: SyntheticMarket, folder: Path) -> list[Path]:
    """Write the bars as `bars-*.parquet` into a folder; returns the files."""
    files = []
    for block, bars in enumerate(_blocks(market)):
        files.append(folder / f"bars-{block:05d}.parquet")
        bars.write_parquet(files[-1], compression="zstd", mkdir=True)
    return files


def bars_of(market: SyntheticMarket) -> pl.DataFrame:
    """All bars: symbol, date (text), open, high, low, close, volume, adj_close."""
    return pl.concat(_blocks(market))


def symbols_of(market: SyntheticMarket) -> list[str]:
    """A name for each asset; some who came late carry the name of one who left more than 60 sessions before."""
    symbols = [f"SYN{asset:05d}" for asset in range(market.config.assets)]
    random = np.random.default_rng([market.config.seed, 77])
    first_A = market.alive_DA.argmax(axis=0)
    last_A = len(market.dates) - 1 - market.alive_DA[::-1].argmax(axis=0)
    free = list(np.flatnonzero(first_A > 0))
    for dead in np.flatnonzero(market.delisted_A):
        heirs = [asset for asset in free if first_A[asset] > last_A[dead] + 60]
        if heirs and random.random() < REUSED:
            symbols[heirs[0]] = symbols[dead]
            free.remove(heirs[0])
    return symbols


def _blocks(market: SyntheticMarket) -> Iterator[pl.DataFrame]:
    """Bars of a few assets at a time; an asset is drawn by itself, so that blocks do not matter."""
    symbols = symbols_of(market)
    order = sorted(range(len(symbols)), key=lambda asset: (symbols[asset], int(market.alive_DA[:, asset].argmax())))
    for start in range(0, len(order), BLOCK_ASSETS):
        yield pl.concat([_asset(market, asset, symbols[asset]) for asset in order[start : start + BLOCK_ASSETS]])


def _asset(market: SyntheticMarket, asset: int, symbol: str) -> pl.DataFrame:
    random = np.random.default_rng([market.config.seed, 1000 + asset])
    days = np.flatnonzero(market.alive_DA[:, asset])
    returns = market.returns_DA[days, asset]
    price, shares = _corporate_history(random, returns, days)
    total_return_index = np.cumprod(1.0 + returns)
    close = price / shares
    relative = _bars(random, market, asset, days, returns)
    stale = random.random(len(days)) < STALE
    stale[[0, -1]] = False
    bars = relative * close[:, None]
    spread = half_spread(close)
    bars[:, 1] *= 1.0 + spread  # somebody bought at the high and sold at the low
    bars[:, 2] *= 1.0 - spread
    volume = _volume(random, market, asset, days, returns) * shares
    adjusted = total_return_index * (close[-1] / total_return_index[-1])
    last_traded = np.maximum.accumulate(np.where(stale, 0, np.arange(len(days))))
    # A day without a trade repeats the last close; an event on such a day shows in the factor as it does elsewhere.
    factor = adjusted / close
    shown = adjusted[last_traded] / factor
    bars = np.where(stale[:, None], shown[:, None], bars)
    return pl.DataFrame(
        {
            "symbol": pl.Series([symbol]).new_from_index(0, len(days)),
            "date": pl.Series(market.dates[days]).cast(pl.Date).dt.to_string("%Y-%m-%d"),
            **{name: bars[:, column] for column, name in enumerate(("open", "high", "low"))},
            "close": bars[:, 3],
            "volume": np.where(stale, 0, np.maximum(volume, 1.0)).astype(np.int64),
            "adj_close": bars[:, 3] * factor,
        }
    )


def _corporate_history(
    random: np.random.Generator, returns: np.ndarray, days: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Price of a share of the first day, less the dividends that were paid, and shares that it has become, by day."""
    paid = np.where((days + random.integers(63)) % 63 == 0, DIVIDEND, 0.0)
    paid[0] = 0.0
    price = random.lognormal(3.5, 0.5) * np.cumprod((1.0 + returns) * (1.0 - paid))
    shares = np.ones(len(days))
    start, held = 0, 1.0
    while True:  # once for each split, not for each day
        level = price[start:] / held
        beyond = np.flatnonzero((level > SPLIT_ABOVE) | (level < MERGE_BELOW))
        if not len(beyond) or start + beyond[0] + 1 >= len(days):
            return price, shares
        factor = 2.0 if level[beyond[0]] > SPLIT_ABOVE else 0.1
        start += int(beyond[0]) + 1
        held *= factor
        shares[start:] = held


def _bars(
    random: np.random.Generator, market: SyntheticMarket, asset: int, days: np.ndarray, returns: np.ndarray
) -> np.ndarray:
    """[N, 4] open, high, low, close relative to the close. The planted signal shows in the opening and in the extremes."""
    deviation = np.sqrt(
        market.own_variance_DA[days, asset] + market.factor_variance_DK[days] @ market.loadings_AK[asset] ** 2
    )
    shown = market.signal_DA[days, asset] if market.config.variant == "drift" else np.zeros(len(days))
    log_return = np.log1p(returns)
    overnight = 0.3 * log_return + 0.3 * deviation * (random.normal(size=len(days)) + 0.5 * shown)
    inside = log_return - overnight
    path = np.cumsum(random.standard_normal((len(days), STEPS), np.float32), axis=1)
    place = np.arange(1, STEPS + 1, dtype=np.float32) / STEPS
    path = (path - path[:, -1:] * place) * (0.8 * deviation / np.sqrt(STEPS))[:, None] + place * inside[:, None]
    lean = 0.5 * deviation * (shown + random.normal(size=len(days)))
    high = np.maximum(path.max(axis=1), 0.0) + np.maximum(-lean, 0.0)
    low = np.minimum(path.min(axis=1), 0.0) - np.maximum(lean, 0.0)
    high, low = np.maximum(high, inside), np.minimum(low, inside)
    return np.exp(np.column_stack([np.zeros(len(days)), high, low, inside]) - inside[:, None])


def half_spread(price: np.ndarray) -> np.ndarray:
    """Share of the price, by the price of a share."""
    return LEAST_HALF_SPREAD + TICK / price


def _volume(
    random: np.random.Generator, market: SyntheticMarket, asset: int, days: np.ndarray, returns: np.ndarray
) -> np.ndarray:
    shown = market.signal_DA[days, asset] if market.config.variant == "drift" else 0.0
    surprise = np.abs(returns) / market.volatility_A[asset]
    return np.exp(random.normal(14.0, 0.7) + 0.15 * surprise + 0.3 * shown + random.normal(0.0, 0.3, len(days)))
