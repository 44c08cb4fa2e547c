"""Leakage tests: does anything that is decided at a close know what comes after it?

A test that could not have failed on what it was given raises `NotEnoughDataError`.

Shapes: B dates, S steps, N assets of a view, D decisions, O orders of the assets, R rows, F channels.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.batches import RISK_SESSIONS, returns_until, step_returns
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import history_needed, split_dates
from finjepa_model.errors import FinJEPAError
from finjepa_model.market_view import MarketView, next_universe
from finjepa_model.portfolio import PortfolioSimulator, PortfolioState
from finjepa_pipeline.backtest.engine import BacktestSetup, StrategyResult, simulate, without_costs
from finjepa_pipeline.backtest.metrics import SESSIONS_PER_YEAR, sharpe
from finjepa_pipeline.backtest.strategies import Strategy, long_only
from finjepa_pipeline.features import build_panel
from finjepa_pipeline.prices.derive import UniverseConfig, derive
from finjepa_pipeline.prices.ingest import ingest
from finjepa_pipeline.prices.sources import PriceSourceConfig
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse, sql

DELAYS = (0, 1, 2, 5)  # sessions
_ORDERS = 16
_ORDERS_TRIED = 3  # decisions at which an order is changed
_COLLAPSE = 2.0  # annualised Sharpe ratio that one session's delay may cost
_SIGMAS = 3.0  # one sound product in 740 is beyond them
_POWER = 0.84  # standard errors more: what is found in 80 % of cases
_LARGEST_DROP = 6.0  # where only more would be found there is no result; one leaked session costs a daily rule about 12
_LARGEST_CORRELATION = 0.5
FUTURES = ("cut", "noise", "restated")
DECISIONS = 3  # that end at the last close before another future begins
_PRICES = ("open", "high", "low", "close", "adj_close")
_FEATURE_LIMIT = 2e-5  # of a normalised feature in float32: back-adjustment rescales prices, and rounding moves
_DECISION_LIMIT = 1e-3  # of wealth: planners search in float32, and rounding may turn one elite candidate into another

Decided = list[dict[str, float]]


class NotEnoughDataError(FinJEPAError):
    """A test has no result: what it was given could not have shown a fault."""


@dataclass(frozen=True)
class AuditFinding:
    """The result of one test: `passed` is None where there is none, and the text then begins with `NOT_ENOUGH_DATA` or `NOT_RUN`;
    `value` decides. A failure `of_data`, of prices, features or universe, concerns every planner."""

    test: str
    passed: bool | None
    value: float
    text: str
    of_data: bool = False


def model_labels(
    panel: Panel, config: FinJEPAConfig, dates_B: np.ndarray, assets_BN: np.ndarray
) -> dict[str, tuple[np.ndarray, range]]:
    """What a model is fitted to at these closes, and the sessions after each close that it may follow: those from the fill to the
    next fill, and those over which risk is forecast."""
    stride, stop = config.model.stride, len(panel.dates)
    return {
        "expected returns": (step_returns(panel, dates_B, assets_BN, stride), range(2, stride + 2)),
        "risk": (returns_until(panel, dates_B, assets_BN, RISK_SESSIONS, stop).numpy(), range(1, RISK_SESSIONS + 1)),
    }


@dataclass(frozen=True)
class Product:
    """What is tested.

    Attributes:
        strategy: a new strategy for a panel.
        n_assets: largest universe.
        test_block: sessions of a panel that nothing was trained on; where None, by the shares of the config.
    """

    strategy: Callable[[Panel], Strategy]
    config: FinJEPAConfig
    n_assets: int = 20
    test_block: Callable[[Panel], tuple[int, int]] | None = None

    def in_cash(self, count: int) -> PortfolioState:
        return PortfolioSimulator(self.config.portfolio).start((1, count))

    def setup(self, panel: Panel, *, free: bool = False) -> BacktestSetup:
        """The test block under the config's costs, or under none.

        Raises:
            NotEnoughDataError: if it is too short for one decision.
        """
        costs = without_costs(self.config.portfolio) if free else self.config.portfolio
        try:
            block = self.test_block(panel) if self.test_block else split_dates(len(panel.dates), self.config).test
            return BacktestSetup.over(
                panel,
                block,
                costs,
                stride=self.config.model.stride,
                n_assets=self.n_assets,
                window=history_needed(self.config),
            )
        except FinJEPAError as error:
            raise NotEnoughDataError(str(error)) from error


def fill_lag(product: Product, panel: Panel) -> AuditFinding:
    """Of two strategies that differ in one decision (the first, the middle and the last one), daily returns are equal
    up to and with the session of the fill, which is the one after the decision. Exact: it finds an early fill of
    whatever size."""
    setup = product.setup(panel, free=True)
    views = setup.views()
    chosen = np.unique(np.linspace(0, len(views) - 1, min(_ORDERS_TRIED, len(views))).astype(int))
    early = []
    for k in chosen:
        best, worst = (simulate(_Switch(panel, views[k], sign), setup, views).gross_T for sign in (1, -1))
        moved = np.flatnonzero(np.abs(best - worst) > 1e-12)
        if len(moved):  # the session of the fill has the number decisions[k] - decisions[0]
            early.append(setup.decisions[k] - setup.decisions[0] + 1 - int(moved[0]))
    if not early:
        raise NotEnoughDataError("no two assets could be told apart after any decision")
    most = max(early)
    text = (
        f"orders of {len(early)} decisions earn nothing before the session after their fill"
        if most <= 0
        else f"orders earn {most} session{'s' * (most > 1)} too early: before the one after their fill ({len(early)} decisions)"
    )
    return AuditFinding("fill_lag", most <= 0, float(most), text)


class _Switch:
    """All in one asset; at one decision, all in that which will do best, or worst, in the session of the fill."""

    name = "switch"

    def __init__(self, panel: Panel, changed: MarketView, sign: int):
        self._panel, self._changed, self._sign = panel, changed, sign

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction | None:
        open_N = view.present_N & view.tradable_N
        if view.date > self._changed.date or not open_N.any():
            return None
        place = int(np.argmax(open_N))
        if view.date == self._changed.date:
            rows_N = self._panel.rows(self._panel.date_index(view.date) + 1, view.asset_indices)
            known_N = open_N & (rows_N >= 0)
            tomorrow_N = np.where(known_N, self._sign * self._panel.returns[rows_N], -np.inf)
            place = int(np.argmax(tomorrow_N))
        return long_only(np.eye(len(open_N))[place])


def label_alignment(product: Product, panel: Panel) -> AuditFinding:
    """Labels move with the returns that they are of, and with no other session's. Exact, at one date in the middle of the
    training block and for every session about it."""
    config = product.config
    sessions = int(config.training.train_share * len(panel.dates))  # of the many assets that end, more live here
    start, last = history_needed(config), sessions - RISK_SESSIONS - 2
    if last < start:
        raise NotEnoughDataError(f"{sessions} sessions hold no whole sample")
    date, around_T = (start + last) // 2, np.arange(-1, RISK_SESSIONS + 3)
    rows_AT = panel.rows(date + around_T, np.arange(len(panel.assets))[:, None])
    assets_1N = np.flatnonzero(((rows_AT >= 0) & panel.observed[rows_AT]).all(1))[None, :3]
    if not assets_1N.size:
        raise NotEnoughDataError(f"no asset is observed on all of {len(around_T)} sessions")
    bumped, wrong = copy.copy(panel), []
    bumped.returns = np.array(panel.returns)
    sound = model_labels(panel, config, np.array([date]), assets_1N)
    for after, rows_N in zip(around_T, rows_AT[assets_1N[0]].T, strict=True):
        bumped.returns[rows_N] += np.float32(0.01)
        for name, (label, _) in model_labels(bumped, config, np.array([date]), assets_1N).items():
            moved = bool((np.abs(label - sound[name][0]) > 1e-4).any())
            wrong += [f"{name} and session {after:+d}"] * (moved != (after in sound[name][1]))
        bumped.returns[rows_N] = panel.returns[rows_N]
    text = (
        f"labels of {' and of '.join(sound)} follow the sessions that they are of, and no others"
        if not wrong
        else f"labels do not match the returns that follow a decision: {', '.join(wrong[:4])} after it"
    )
    return AuditFinding("label_alignment", not wrong, float(len(wrong)), text)


def permutation(product: Product, panel: Panel) -> AuditFinding:
    """The order of the assets does not matter: exactly, or, for planners that draw candidates, without a trend over places.

    Where weights differ between orders, a correlation r of them with the place is found in 80 % of cases from r = 3.84 / sqrt(16
    N) on, 0.21 for N = 20 assets. A preference for one place in the middle is not found.
    """
    setup = product.setup(panel)
    views = setup.views()
    middle = len(views) // 2
    tried = (_reordered(product, panel, setup, view) for view in (*views[middle:], *views[:middle]))
    found = next((one for one in tried if one is not None), None)
    if found is None:
        raise NotEnoughDataError(f"nothing was decided at any of {len(views)} closes")
    exposure_ON, place_ON = found
    deviation_ON = exposure_ON - exposure_ON.mean(axis=0)
    largest = float(np.abs(deviation_ON).max())
    if largest <= 1e-6:
        text = f"weights are the same in {_ORDERS} orders of {exposure_ON.shape[1]} assets"
        return AuditFinding("permutation", True, largest, text)
    rho = float(np.corrcoef(deviation_ON.ravel(), place_ON.ravel())[0, 1])
    detectable = (_SIGMAS + _POWER) / np.sqrt(deviation_ON.size)
    failed = abs(rho) * np.sqrt(deviation_ON.size) >= _SIGMAS
    if not failed and detectable > _LARGEST_CORRELATION:
        raise NotEnoughDataError(
            f"{exposure_ON.shape[1]} assets show a correlation with the place only from {detectable:.2f} on"
        )
    text = (
        f"weights differ by up to {largest:.3f} between orders, as candidates are drawn; correlation with the place "
        f"{rho:+.3f} ({detectable:.2f} is found in 80 % of cases)"
    )
    return AuditFinding("permutation", not failed, largest, text)


def _reordered(
    product: Product, panel: Panel, setup: BacktestSetup, view: MarketView
) -> tuple[np.ndarray, np.ndarray] | None:
    """Signed weights by asset, and the asset's place, in each of a few orders; None where nothing is decided."""
    rng, by_asset, places = np.random.default_rng(0), [], []
    for _ in range(_ORDERS):
        order_N = rng.permutation(len(view.asset_indices))
        shuffled = MarketView(panel, view.session, view.asset_indices[order_N], setup.window)
        action = product.strategy(panel).decide(shuffled, product.in_cash(len(order_N)))
        if action is None:
            return None
        places.append(np.argsort(order_N))
        by_asset.append((action.weights_XN * action.signals_XN)[0].double().numpy()[places[-1]])
    return np.array(by_asset), np.array(places)


class Delayed:
    """A strategy that sees each close some sessions late."""

    def __init__(self, strategy: Strategy, panel: Panel, window: int, sessions: int):
        self.name = strategy.name
        self._strategy, self._panel, self._window, self._sessions = strategy, panel, window, sessions

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction | None:
        late = MarketView(self._panel, view.session - self._sessions, view.asset_indices, self._window)
        return self._strategy.decide(late, state)


def delayed(product: Product, panel: Panel, sessions: int) -> StrategyResult:
    """The test block, traded so many sessions late."""
    setup = product.setup(panel)
    return simulate(Delayed(product.strategy(panel), panel, setup.window, sessions), setup)


def delay(results: Sequence[StrategyResult]) -> AuditFinding:
    """What is earned fades with the age of what is known; it does not depend on a single session: it fails where one
    session's delay costs a Sharpe ratio of more than 2 and three standard errors. The results are those of DELAYS."""
    if not np.abs(results[0].held_KR).sum():
        raise NotEnoughDataError("nothing was held, so nothing can depend on a session")
    net_TK = np.column_stack([result.net_T for result in results])
    ratio_K = np.nan_to_num(sharpe(net_TK))
    drop = float(ratio_K[0] - ratio_K[1])
    gap_T = net_TK[:, 0] - net_TK[:, 1]
    error = float(gap_T.std(ddof=1) / max(net_TK[:, 0].std(ddof=1), 1e-12) * np.sqrt(SESSIONS_PER_YEAR / len(gap_T)))
    failed = drop > max(_COLLAPSE, _SIGMAS * error)
    detectable = max(_COLLAPSE, (_SIGMAS + _POWER) * error)
    ratios = ", ".join(f"{sessions}: {ratio:.2f}" for sessions, ratio in zip(DELAYS, ratio_K, strict=True))
    text = f"Sharpe ratio by sessions of delay {ratios}; the first costs {drop:+.2f} ({detectable:.1f} is found in 80 % of cases)"
    if not failed and detectable > _LARGEST_DROP:
        raise NotEnoughDataError(f"{len(gap_T)} sessions are too few: {text}")
    return AuditFinding("delay", not failed, drop, text)


def build(settings: Settings, source: PriceSourceConfig, channels: tuple[str, ...] = ()) -> Path:
    """Prices to a panel by the stages of the pipeline, without Dagster; returns the panel's folder."""
    warehouse = Warehouse.from_settings(settings)
    ingest(warehouse, settings, source)
    derive(warehouse, UniverseConfig())
    with warehouse.connect() as con:
        return build_panel(con, settings, channels)


def raw_rows(con: duckdb.DuckDBPyConnection, feed: str, data_version: str, symbols: int, sessions: int) -> pl.DataFrame:
    """Rows of a feed as its source gave them: a sample of the symbols, the last `sessions` sessions."""
    of = {"symbols": symbols, "sessions": sessions, "feed": feed, "data_version": data_version}
    rows = con.sql(sql("backtest/audit_rows"), params=of).pl()
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


def with_other_future(rows: pl.DataFrame, date: str, how: str, seed: int = 0) -> pl.DataFrame:
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
    if rows["adj_close"].null_count() == len(rows):  # one, adjusted price: a split restates it, and volumes against it
        restated = {name: pl.col(name) / 2 for name in _PRICES} | {"volume": pl.col("volume") * 2}
    else:
        restated = {"adj_close": pl.col("adj_close") * 0.5 * 0.97}
    return rows.with_columns(
        pl.when(future).then(pl.col(name)).otherwise(before).alias(name) for name, before in restated.items()
    )


def future_invariance(
    product: Product,
    rows: pl.DataFrame,
    folder: Path,
    *,
    dates: int = 2,
    seed: int = 0,
    futures: Sequence[str] = FUTURES,
) -> AuditFinding:
    """Recompute from raw rows with other futures, and compare features, universe and decisions up to the change.
    Exact at the dates that are tried.

    Args:
        folder: an empty folder to work in.
        dates: how many random dates; each costs a build a future.
    """
    whole = build_from_rows(folder / "whole", rows)
    needed = history_needed(product.config) + product.config.model.stride * DECISIONS
    # the future must hold something: no later than nine tenths of the history
    first, last = max(needed + 1, len(whole.dates) // 2), int(0.9 * len(whole.dates))
    if first >= last:
        least = int((needed + 2) / 0.9) + 1
        raise NotEnoughDataError(
            f"{len(whole.dates)} sessions are too few; {least} are needed: a larger --sessions, or a longer history"
        )
    chosen = np.random.default_rng(seed).integers(first, last, dates)
    of_data: dict[str, float] = {}
    of_decisions: dict[str, float] = {}
    decisions = 0
    for session in chosen.tolist():
        date = str(whole.dates[session])
        decided = _decisions(product, whole, session)
        decisions += sum(map(bool, decided))
        for how in futures:
            other = build_from_rows(folder / f"{how}-{date}", with_other_future(rows, date, how, seed))
            again = _decisions(product, other, other.date_index(date))
            found = _panel_differences(whole, other, session) | _universe_differences(decided, again)
            of_data |= {f"{where} ({how} after {date})": size for where, size in found.items()}
            of_decisions[f"a decision ({how} after {date})"] = _largest_difference(decided, again)
    bad_data = {where: size for where, size in of_data.items() if size > _FEATURE_LIMIT}
    bad = bad_data | {where: size for where, size in of_decisions.items() if size > _DECISION_LIMIT}
    if not bad and not decisions:
        raise NotEnoughDataError(f"nothing was decided at {len(chosen)} dates; features and universe stayed")
    largest = max(*of_data.values(), *of_decisions.values())
    text = (
        f"features, universe and decisions of {product.strategy(whole).name} stay with {len(chosen) * len(futures)} other "
        f"futures (largest difference {largest:.1e})"
        if not bad
        else "the future moves " + "; ".join(f"{where} by {size:.2g}" for where, size in [*bad.items()][:4])
    )
    return AuditFinding("future_invariance", not bad, largest, text, bool(bad_data))


def _panel_differences(whole: Panel, other: Panel, session: int) -> dict[str, float]:
    """The largest difference of each channel and mask up to a session."""
    places, found = {name: a for a, name in enumerate(other.assets)}, dict[str, float]()

    def note(where: str, gaps: np.ndarray | float) -> None:
        found[where] = max(found.get(where, 0.0), float(np.max(gaps, initial=0)))

    for a, name in enumerate(whole.assets):
        if whole.first[a] > session:
            continue
        if name not in places:
            note(f"the asset {name}", 1.0)
            continue
        here_T, there_T = (p.rows(np.arange(session + 1), i) for p, i in ((whole, a), (other, places[name])))
        both_T = (here_T >= 0) & (there_T >= 0)
        note("the rows of an asset", float(both_T.sum() != (here_T >= 0).sum()))
        here, there = here_T[both_T], there_T[both_T]
        for f, channel in enumerate(whole.channels):
            note(f"the channel {channel}", _gaps(whole.features[here, f], other.features[there, f]))
        for part in ("returns", "beta", "observed", "tradable", "eligible"):
            note(part, _gaps(getattr(whole, part)[here], getattr(other, part)[there]))
    note("the market's context", _gaps(whole.market_features[: session + 1], other.market_features[: session + 1]))
    return found


def _gaps(ours: Any, theirs: Any) -> np.ndarray:
    """How far apart; what is a number on one side only is infinitely far."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    with np.errstate(invalid="ignore"):
        return np.where(same, 0.0, np.nan_to_num(np.abs(ours - theirs), nan=np.inf, posinf=np.inf))


def _decisions(product: Product, panel: Panel, session: int) -> Decided:
    """Signed weight of each asset, and the hedge, at the last decisions up to a session, each from an all-cash portfolio."""
    strategy = product.strategy(panel)
    window, stride = history_needed(product.config), product.config.model.stride
    sessions = [session - stride * back for back in range(DECISIONS - 1, -1, -1)]
    universe = next_universe(None, panel, sessions[0], product.n_assets, window)
    decided: Decided = []
    for day in sessions:
        view = MarketView(panel, day, universe.assets_N, window)
        action = strategy.decide(view, product.in_cash(len(universe.assets_N)))
        if action is None:
            decided.append({})
            continue
        exposure_N = (action.weights_XN * action.signals_XN)[0].double().tolist()
        decided.append(dict(zip(view.assets, exposure_N, strict=True)) | {"the hedge": float(action.hedge_X[0])})
    return decided


def _universe_differences(ours: Decided, theirs: Decided) -> dict[str, float]:
    """Which assets are traded in one of two futures alone."""
    strangers = (sorted(set(a) ^ set(b)) for a, b in zip(ours, theirs, strict=True))
    return {f"the universe ({', '.join(names[:3])})": 1.0 for names in strangers if names}


def _largest_difference(ours: Decided, theirs: Decided) -> float:
    """The largest difference of what both hold, a share of wealth."""
    pairs = zip(ours, theirs, strict=True)
    return max((float(_gaps(a[name], b[name])) for a, b in pairs for name in set(a) & set(b)), default=0.0)
