"""Everything from raw rows on, made again with another future: what was decided before must not move.

Shapes: R rows, F channels, D decisions, N assets of a view.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl

from finjepa_model.data.batches import history_needed
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.backtest.audit import Finding, NotEnoughDataError, Product, fresh_state
from finjepa_pipeline.backtest.market_view import MarketView, universes
from finjepa_pipeline.backtest.proving import build
from finjepa_pipeline.prices.sources import PriceSourceConfig
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import sql

FUTURES = ("cut", "noise", "restated")
DECISIONS = 3  # that end at the last close before another future begins
_PRICES = ("open", "high", "low", "close", "adj_close")
_FEATURE_LIMIT = 2e-5  # of a normalised feature in float32: back-adjustment rescales prices, and rounding moves
_DECISION_LIMIT = 1e-3  # of wealth: planners search in float32, and rounding may turn one elite candidate into another

Build = Callable[[Path, pl.DataFrame], Panel]


def raw_rows(
    con: duckdb.DuckDBPyConnection, feed: str, data_version: str, symbols: int, sessions: int, seed: int = 0
) -> pl.DataFrame:
    """Rows of a feed as its source gave them: a sample of the symbols, the last `sessions` sessions."""
    of = {"feed": feed, "data_version": data_version}
    rows = con.sql(sql("audit_rows"), params=of | {"symbols": symbols, "sessions": sessions, "seed": str(seed)}).pl()
    if rows.is_empty():
        raise FinJEPAError("there are no prices to audit; run `finjepa ingest` first")
    return rows


def build_from_rows(folder: Path, rows: pl.DataFrame) -> Panel:
    """Ingest, adjust, choose the universe and build the panel in a home of its own."""
    files = folder / "rows"
    files.mkdir(parents=True)
    rows.write_parquet(files / "rows.parquet")
    settings = Settings(home=folder / "home").ensure()
    return Panel.open(build(settings, PriceSourceConfig(data_source="files", path=str(files))))


def retold(rows: pl.DataFrame, date: str, how: str, seed: int = 0) -> pl.DataFrame:
    """The rows with what comes after `date` cut off, replaced by noise, or with later splits and dividends, which rescale
    every adjusted price before them."""
    future = pl.col("date") > date
    if how == "cut":
        return rows.filter(~future)
    if how == "noise":
        rng = np.random.default_rng(seed)
        price, volume = (pl.Series(np.exp(rng.normal(0, sd, len(rows)))) for sd in (0.02, 0.5))
        changed = [pl.when(future).then(pl.col(c) * price).otherwise(pl.col(c)).alias(c) for c in _PRICES]
        volumes = pl.when(future).then((pl.col("volume") * volume).cast(pl.Int64)).otherwise(pl.col("volume"))
        return rows.with_columns(*changed, volumes.alias("volume"))
    if _one_price(rows):  # a split restates it, and volumes against it
        restated = {name: pl.col(name) / 2 for name in _PRICES} | {"volume": pl.col("volume") * 2}
    else:
        restated = {"adj_close": pl.col("adj_close") * 0.5 * 0.97}
    return rows.with_columns(
        pl.when(future).then(pl.col(name)).otherwise(before).alias(name) for name, before in restated.items()
    )


def _one_price(rows: pl.DataFrame) -> bool:
    """Whether the source gives no price as it was traded: all of its prices are adjusted."""
    return rows["adj_close"].null_count() == len(rows)


@dataclass(frozen=True)
class _Difference:
    where: str
    size: float
    limit: float = _FEATURE_LIMIT
    of_data: bool = True


def truncation(
    product: Product,
    rows: pl.DataFrame,
    folder: Path,
    *,
    dates: int = 2,
    seed: int = 0,
    futures: Sequence[str] = FUTURES,
    build: Build = build_from_rows,
) -> Finding:
    """Recompute from raw rows with other futures, and compare features, universe and decisions up to the change.

    Exact: whatever moves a feature by more than rounding, a member of the universe or a decision is found, if it acts at one
    of the dates; a leak that acts at one date in ten is found at two dates in 19 % of runs, at twenty in 88 %.

    Args:
        folder: an empty folder to work in.
        dates: how many random dates; each costs a build a future.

    Raises:
        NotEnoughDataError: if the history is too short, or nothing was decided at any of the dates.
    """
    whole = build(folder / "whole", rows)
    needed = history_needed(product.config) + product.config.model.stride * DECISIONS
    # the future must hold something: no later than nine tenths of the history
    first, last = max(needed + 1, len(whole.dates) // 2), int(0.9 * len(whole.dates))
    if first >= last:
        least = int((needed + 2) / 0.9) + 1
        raise NotEnoughDataError(
            f"{len(whole.dates)} sessions are too few; {least} are needed: a larger --sessions, or a longer history"
        )
    chosen = np.random.default_rng(seed).integers(first, last, dates)
    worst: list[_Difference] = []
    decisions = 0
    for session in chosen.tolist():
        date = str(whole.dates[session])
        decided = _decisions(product, whole, session)
        decisions += sum(map(bool, decided))
        for how in futures:
            other = build(folder / f"{how}-{date}", retold(rows, date, how, seed))
            found = _panel_differences(whole, other, session)
            found += _decision_differences(decided, _decisions(product, other, other.date_index(date)))
            worst += [replace(one, where=f"{one.where} ({how} after {date})") for one in found]
    bad = [one for one in worst if one.size > one.limit]
    if not bad and not decisions:
        raise NotEnoughDataError(f"nothing was decided at {len(chosen)} dates; features and universe stayed")
    largest = max(worst, key=lambda one: one.size)
    text = (
        f"features, universe and decisions of {product.strategy(whole).name} stay with {len(chosen) * len(futures)} other "
        f"futures (largest difference {largest.size:.1e})"
        if not bad
        else "the future moves " + "; ".join(f"{one.where} by {one.size:.2g}" for one in bad[:4])
    )
    return Finding("truncation", not bad, largest.size, text, any(one.of_data for one in bad))


def _panel_differences(whole: Panel, other: Panel, session: int) -> list[_Difference]:
    """The largest difference of each channel and mask up to a session."""
    places = {name: a for a, name in enumerate(other.assets)}
    pairs = [(a, places[name]) for a, name in enumerate(whole.assets) if name in places and whole.first[a] <= session]
    days_T = np.arange(session + 1)
    found: dict[str, float] = {}
    missing = [name for a, name in enumerate(whole.assets) if name not in places and whole.first[a] <= session]
    if missing:
        found[f"the asset {missing[0]}"] = 1.0
    for a, b in pairs:
        here_T, there_T = whole.rows(days_T, a), other.rows(days_T, b)
        if (both := (here_T >= 0) & (there_T >= 0)).sum() != (here_T >= 0).sum():
            found["the rows of an asset"] = 1.0
        here, there = here_T[both], there_T[both]
        difference_F = _gaps(whole.features[here], other.features[there]).max(axis=0, initial=0)
        for name, size in zip(whole.channels, difference_F.tolist(), strict=True):
            found[f"the channel {name}"] = max(found.get(f"the channel {name}", 0.0), size)
        for name in ("returns", "beta", "observed", "tradable", "eligible"):
            ours, theirs = (np.asarray(getattr(panel, name)[r], float) for panel, r in ((whole, here), (other, there)))
            found[name] = max(found.get(name, 0.0), float(_gaps(ours, theirs).max(initial=0)))
    market = _gaps(whole.market_features[: session + 1], other.market_features[: session + 1])
    found["the market's context"] = float(market.max(initial=0))
    return [_Difference(where, size) for where, size in found.items()]


def _gaps(ours: Any, theirs: Any) -> np.ndarray:
    """How far apart; what is a number on one side only is infinitely far."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    with np.errstate(invalid="ignore"):
        return np.where(same, 0.0, np.nan_to_num(np.abs(ours - theirs), nan=np.inf, posinf=np.inf))


Decided = list[dict[str, float]]


def _decisions(product: Product, panel: Panel, session: int) -> Decided:
    """Signed weight of each asset, and the hedge, at the last decisions up to a session, each from an all-cash portfolio."""
    strategy = product.strategy(panel)
    window, stride = history_needed(product.config), product.config.model.stride
    sessions = [session - stride * back for back in range(DECISIONS - 1, -1, -1)]
    universe = universes(panel, sessions[:1], product.n_assets, window, every=10**9)[0]
    decided: Decided = []
    for day in sessions:
        view = MarketView(panel, day, universe.assets_N, window)
        action = strategy.decide(view, fresh_state(product.config, len(universe.assets_N)))
        if action is None:
            decided.append({})
            continue
        exposure_N = (action.weights_XN * action.signals_XN)[0].double().tolist()
        decided.append(dict(zip(view.assets, exposure_N, strict=True)) | {"the hedge": float(action.hedge_X[0])})
    return decided


def _decision_differences(ours: Decided, theirs: Decided) -> list[_Difference]:
    """Who is traded, and how much of it."""
    found = []
    for a, b in zip(ours, theirs, strict=True):
        if set(a) != set(b):
            strangers = sorted(set(a) ^ set(b))
            found.append(_Difference(f"the universe ({', '.join(strangers[:3])})", 1.0))
        common = [float(_gaps(a[name], b[name])) for name in set(a) & set(b)]
        found.append(_Difference("a decision", max(common, default=0.0), _DECISION_LIMIT, of_data=False))
    return found
