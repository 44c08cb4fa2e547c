"""Daily bars of a synthetic market in the Hub schema, and the tables of the truth behind them.

Shape suffixes: D sessions, A assets, S steps within a day, N rows.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json
from finjepa_pipeline.prices.synthetic.market import SyntheticConfig, SyntheticMarket, generate

STEPS = 32  # of the path within a day that open, high, low and close are read from
BLOCK_ASSETS = 50
STALE = 0.01  # share of sessions without a trade
DIVIDEND = 0.005  # of the price, once a quarter
REUSED = 0.1  # share of delisted symbols that another company takes over
SPLIT_ABOVE, MERGE_BELOW = 200.0, 2.0
TERMINAL_RETURN = -0.3
TICK, LEAST_HALF_SPREAD = 0.005, 0.0002  # half a cent, and 2 bp: what buying costs above and selling below the price


def write_bars(market: SyntheticMarket, folder: Path) -> list[Path]:
    """Write `bars-*.parquet` and, in `truth/`, expected returns, covariance factors, regimes and events.

    Returns:
        the files of bars.
    """
    truth = folder / "truth"
    truth.mkdir(parents=True, exist_ok=True)
    symbols = symbols_of(market)
    files, events = [], []
    for block, (bars, happened) in enumerate(_blocks(market, symbols)):
        files.append(folder / f"bars-{block:05d}.parquet")
        bars.write_parquet(files[-1], compression="zstd")
        events.append(happened)
    pl.concat(events).write_parquet(truth / "events.parquet")
    _write_truth(market, symbols, truth)
    return files


def load_market(folder: Path) -> SyntheticMarket:
    """The market behind a folder that `write_bars` wrote, with all of its truth.

    It is made again from `truth/config.json` and compared with the tables beside it, so that truth and bars belong together.

    Raises:
        FinJEPAError: if there is no truth in the folder, or this version of the generator makes another market of its config.
    """
    truth = folder / "truth"
    try:
        market = generate(SyntheticConfig(**json.loads((truth / "config.json").read_text(encoding="utf-8"))))
        written = pl.read_parquet(truth / "expected_returns.parquet", glob=False).drop("date").to_numpy()
    except (OSError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise FinJEPAError(
            f"{folder} holds no synthetic market with its truth ({error}); write one with write_bars"
        ) from error
    if not np.array_equal(written, market.expected_DA):
        raise FinJEPAError(
            f"{truth} was written by another version of the generator; read its tables as they are, or write it again"
        )
    return market


def bars_of(market: SyntheticMarket) -> pl.DataFrame:
    """All bars: symbol, date (text), open, high, low, close, volume, adj_close."""
    return pl.concat([bars for bars, _ in _blocks(market, symbols_of(market))])


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


def _blocks(market: SyntheticMarket, symbols: list[str]) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Bars and events of a few assets at a time; an asset is drawn by itself, so that blocks do not matter."""
    order = sorted(range(len(symbols)), key=lambda asset: (symbols[asset], int(market.alive_DA[:, asset].argmax())))
    for start in range(0, len(order), BLOCK_ASSETS):
        parts = [_asset(market, asset, symbols[asset]) for asset in order[start : start + BLOCK_ASSETS]]
        yield pl.concat([bars for bars, _ in parts]), pl.concat([events for _, events in parts])


def _asset(market: SyntheticMarket, asset: int, symbol: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    random = np.random.default_rng([market.config.seed, 1000 + asset])
    days = np.flatnonzero(market.alive_DA[:, asset])
    returns = market.returns_DA[days, asset]
    price, shares, paid = _corporate_history(random, returns, days)
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
    frame = pl.DataFrame(
        {
            "symbol": pl.Series([symbol]).new_from_index(0, len(days)),
            "date": pl.Series(market.dates[days]).cast(pl.Date).dt.to_string("%Y-%m-%d"),
            **{name: bars[:, column] for column, name in enumerate(("open", "high", "low"))},
            "close": bars[:, 3],
            "volume": np.where(stale, 0, np.maximum(volume, 1.0)).astype(np.int64),
            "adj_close": bars[:, 3] * factor,
        }
    )
    return frame, _events(market, asset, symbol, days, shares, paid, stale)


def _corporate_history(
    random: np.random.Generator, returns: np.ndarray, days: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Price of a share of the first day, shares that it has become, and dividends as a share of the price, by day."""
    paid = np.where((days + random.integers(63)) % 63 == 0, DIVIDEND, 0.0)
    paid[0] = 0.0
    price = random.lognormal(3.5, 0.5) * np.cumprod((1.0 + returns) * (1.0 - paid))
    shares = np.ones(len(days))
    start, held = 0, 1.0
    while True:  # once for each split, not for each day
        level = price[start:] / held
        beyond = np.flatnonzero((level > SPLIT_ABOVE) | (level < MERGE_BELOW))
        if not len(beyond) or start + beyond[0] + 1 >= len(days):
            return price, shares, paid
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


def _events(
    market: SyntheticMarket,
    asset: int,
    symbol: str,
    days: np.ndarray,
    shares: np.ndarray,
    paid: np.ndarray,
    stale: np.ndarray,
) -> pl.DataFrame:
    """symbol, asset, date, event, value: shares for one, dividend as a share of the price, terminal return."""
    ratio = np.concatenate([[1.0], shares[1:] / shares[:-1]])
    kinds = [("split", ratio != 1.0, ratio), ("dividend", paid > 0, paid), ("stale", stale, np.zeros(len(days)))]
    if days[0] > 0:
        kinds.append(("listing", np.arange(len(days)) == 0, np.zeros(len(days))))
    if market.delisted_A[asset]:
        end = np.arange(len(days)) == len(days) - 1
        kinds.append(("delisting", end, np.full(len(days), TERMINAL_RETURN)))
    frames = [
        pl.DataFrame({"date": market.dates[days[where]], "value": value[where]}).select(
            pl.lit(symbol).alias("symbol"), pl.lit(asset).alias("asset"), pl.col("date").cast(pl.Date),
            pl.lit(name).alias("event"), pl.col("value").cast(pl.Float64),
        )
        for name, where, value in kinds
    ]  # fmt: skip
    return pl.concat(frames).sort("date", "event")


def _write_truth(market: SyntheticMarket, symbols: list[str], truth: Path) -> None:
    names = [str(asset) for asset in range(market.config.assets)]
    date = pl.Series("date", market.dates).cast(pl.Date)
    for name, array_DA in (
        ("expected_returns", market.expected_DA),
        ("own_variances", market.own_variance_DA),
        ("signals", market.signal_DA),
    ):
        pl.DataFrame(array_DA, schema=names).insert_column(0, date).write_parquet(truth / f"{name}.parquet")
    pl.DataFrame(
        {"asset": range(len(symbols)), "symbol": symbols, "own_volatility": market.volatility_A}
        | {f"loading_{k}": market.loadings_AK[:, k] for k in range(3)}
    ).write_parquet(truth / "assets.parquet")
    pl.DataFrame(
        {"date": date, "regime": market.regime_D, "warning": market.warning_D, "crash": market.crash_D}
        | {f"factor_{k}": market.factor_DK[:, k] for k in range(3)}
        | {f"factor_variance_{k}": market.factor_variance_DK[:, k] for k in range(3)}
    ).write_parquet(truth / "sessions.parquet")
    (truth / "config.json").write_text(to_json(asdict(market.config)))
