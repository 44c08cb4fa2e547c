"""The audit: does anything that is decided at a close know what comes after it, and is luck mistaken for skill?

A test that could not have failed on what it was given raises `NotEnoughDataError`: it has no verdict.

Every test takes the parts that it tries as a `Product`, so that a part with a planted leak can be put in the place of a sound
one. The tests that need markets of known truth are in `audit_markets.py`, the recomputation from raw rows in `truncation.py`.

Shapes: B dates, S steps, N assets of a view, D decisions.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.batches import BatchSource, history_needed, split_dates
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.portfolio import PortfolioSimulator, PortfolioState
from finjepa_pipeline.backtest.engine import Court, Walk, walk
from finjepa_pipeline.backtest.market_view import MarketView
from finjepa_pipeline.backtest.metrics import SESSIONS_PER_YEAR, sharpe
from finjepa_pipeline.backtest.strategies import Strategy, long_only

DELAYS = (0, 1, 2, 5)  # sessions
_ORDERS = 16
_ORDERS_TRIED = 3  # decisions at which an order is changed
_COLLAPSE = 2.0  # annualised Sharpe ratio that one session's delay may cost
_SIGMAS = 3.0  # one sound product in 740 is beyond them
_POWER = 0.84  # standard errors more: what is found in 80 % of cases
_LARGEST_DROP = (
    6.0  # where less than this is not found there is no verdict; one leaked session costs a daily rule about 12
)
_LARGEST_CORRELATION = 0.5


class NotEnoughDataError(FinJEPAError):
    """A test has no verdict: what it was given could not have shown a fault."""


@dataclass(frozen=True)
class Finding:
    """The verdict of one test.

    Attributes:
        passed: None where there is no verdict; the text then begins with `charges.NOT_ENOUGH_DATA` or `NOT_RUN`.
        value: the number that was judged; see the text for what it is.
        of_data: a failure of the prices, features or universe: it concerns every planner.
    """

    test: str
    passed: bool | None
    value: float
    text: str
    of_data: bool = False


def model_labels(panel: Panel, config: FinJEPAConfig, dates_B: np.ndarray, assets_BN: np.ndarray) -> np.ndarray:
    """What a world model is trained to foresee: step_return_BSN, of the last context step at `dates_B`."""
    source = BatchSource(panel, config, (0, len(panel.dates)))  # a batch is of the dates that are asked for
    return source.batch(dates_B, assets_BN).step_return_BSN.numpy()


@dataclass(frozen=True)
class Product:
    """The parts that are on trial.

    Attributes:
        strategy: a new strategy for a panel.
        walk: the engine; labels: what models are trained on.
        n_assets: largest universe.
        test_block: sessions of a panel that nothing was trained on; where None, by the shares of the config.
    """

    strategy: Callable[[Panel], Strategy]
    config: FinJEPAConfig
    walk: Callable[[Strategy, Court, Sequence[MarketView] | None], Walk] = walk
    labels: Callable[[Panel, FinJEPAConfig, np.ndarray, np.ndarray], np.ndarray] = field(default=model_labels)
    n_assets: int = 20
    test_block: Callable[[Panel], tuple[int, int]] | None = None

    def court(self, panel: Panel, *, free: bool = False) -> Court:
        """The test block under the config's costs, or under none.

        Raises:
            NotEnoughDataError: if it is too short for one decision.
        """
        costs = self.config.portfolio
        if free:
            costs = FinJEPAConfig().override(_FREE).portfolio
        try:
            block = self.test_block(panel) if self.test_block else split_dates(len(panel.dates), self.config).test
            return Court.over(
                panel,
                block,
                costs,
                stride=self.config.model.stride,
                n_assets=self.n_assets,
                window=history_needed(self.config),
            )
        except FinJEPAError as error:
            raise NotEnoughDataError(str(error)) from error


_FREE = {
    "portfolio.cost_bps": "0",
    "portfolio.hedge_cost_bps": "0",
    "portfolio.borrow_rate": "0",
    "portfolio.tier_spread_bps": "[0, 0, 0]",
    "portfolio.tier_borrow_rate": "[0, 0, 0]",
    "portfolio.impact": "0",
}


def fill_lag(product: Product, panel: Panel) -> Finding:
    """An order earns nothing before the session after its fill: of two strategies that differ in one decision, daily returns
    are equal up to and with the session of the fill, which is the one after the decision.

    Exact: it finds an early fill of whatever size, at the first, the middle and the last decision.

    Raises:
        NotEnoughDataError: if no decision was found after which two assets move apart.
    """
    court = product.court(panel, free=True)
    views = court.views()
    chosen = np.unique(np.linspace(0, len(views) - 1, min(_ORDERS_TRIED, len(views))).astype(int))
    early = []
    for k in chosen:
        best, worst = (product.walk(_Switch(panel, views[k], sign), court, views).gross_T for sign in (1, -1))
        moved = np.flatnonzero(np.abs(best - worst) > 1e-12)
        if len(moved):  # the session of the fill has the number decisions[k] - decisions[0]
            early.append(court.decisions[k] - court.decisions[0] + 1 - int(moved[0]))
    if not early:
        raise NotEnoughDataError("no two assets could be told apart after any decision")
    most = max(early)
    text = (
        f"orders of {len(early)} decisions earn nothing before the session after their fill"
        if most <= 0
        else f"orders earn {most} session{'s' * (most > 1)} too early: before the one after their fill ({len(early)} decisions)"
    )
    return Finding("fill_lag", most <= 0, float(most), text)


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


def label_alignment(product: Product, panel: Panel) -> Finding:
    """Labels move with the returns of their own step, from the session after the fill on, and with no other session's.

    Exact, at one date in the middle of the training block and for every session about it.

    Raises:
        NotEnoughDataError: if the training block is too short for one date.
    """
    config = product.config
    stride, context = config.model.stride, config.model.context_steps
    sessions = int(config.training.train_share * len(panel.dates))  # of the many assets that end, more live here
    start = history_needed(config) + stride
    alive_A = np.flatnonzero((panel.first <= start - history_needed(config)) & (panel.lengths >= sessions))
    assets_1N = (alive_A if len(alive_A) else np.argsort(panel.first, kind="stable"))[None, :3]
    last = sessions - stride * (config.loss.rollout_steps + 2) - 2
    if last < start:
        raise NotEnoughDataError(f"{sessions} sessions hold no whole sample")
    date = np.array([(start + last) // 2])
    steps = context + config.loss.rollout_steps
    decided_S = date[0] + stride * (np.arange(steps) - context + 1)
    sound_1SN = product.labels(panel, config, date, assets_1N)
    wrong = []
    for session in range(decided_S[0] - 1, decided_S[-1] + stride + 4):
        bumped = copy.copy(panel)
        bumped.returns = np.array(panel.returns)
        bumped.returns[panel.rows(session, assets_1N[0])] += np.float32(0.01)
        moved_S = (np.abs(product.labels(bumped, config, date, assets_1N) - sound_1SN) > 1e-4).any(axis=(0, 2))
        should_S = (session >= decided_S + 2) & (session <= decided_S + 1 + stride)
        wrong += [f"step {s} and session {session - decided_S[s]:+d}" for s in np.flatnonzero(moved_S != should_S)]
    text = (
        f"labels of {steps} steps follow the returns from the session after the fill to the next fill, and no others"
        if not wrong
        else f"labels do not match the returns that are paid: {', '.join(wrong[:4])} after its decision"
    )
    return Finding("label_alignment", not wrong, float(len(wrong)), text)


def permutation(product: Product, panel: Panel) -> Finding:
    """The order of the assets does not matter: exactly, or, for planners that draw candidates, without a trend over places.

    Where weights differ between orders, a correlation r of them with the place is found in 80 % of cases from r = 3.84 / sqrt(16
    N) on, 0.21 for N = 20 assets. A preference for one place in the middle is not found.

    Raises:
        NotEnoughDataError: if nothing is decided at any close, or N is too small to find a correlation of 0.5.
    """
    court = product.court(panel)
    views = court.views()
    middle = len(views) // 2
    for view in (*views[middle:], *views[:middle]):
        found = _reordered(product, panel, court, view)
        if found is not None:
            break
    else:
        raise NotEnoughDataError(f"nothing was decided at any of {len(views)} closes")
    exposure_ON, place_ON = found
    deviation_ON = exposure_ON - exposure_ON.mean(axis=0)
    largest = float(np.abs(deviation_ON).max())
    if largest <= 1e-6:
        text = f"weights are the same in {_ORDERS} orders of {exposure_ON.shape[1]} assets"
        return Finding("permutation", True, largest, text)
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
    return Finding("permutation", not failed, largest, text)


def _reordered(product: Product, panel: Panel, court: Court, view: MarketView) -> tuple[np.ndarray, np.ndarray] | None:
    """Signed weights by asset, and the asset's place, in each of a few orders; None where nothing is decided."""
    rng = np.random.default_rng(0)
    count = len(view.asset_indices)
    by_asset, places = [], []
    for _ in range(_ORDERS):
        order_N = rng.permutation(count)
        shuffled = MarketView(panel, panel.date_index(view.date), view.asset_indices[order_N], court.window)
        action = product.strategy(panel).decide(shuffled, fresh_state(product.config, count))
        if action is None:
            return None
        exposure_N = (action.weights_XN * action.signals_XN)[0].double().numpy()
        by_asset.append(exposure_N[np.argsort(order_N)])
        places.append(np.argsort(order_N))
    return np.array(by_asset), np.array(places)


class Delayed:
    """A strategy that sees each close some sessions late."""

    def __init__(self, strategy: Strategy, panel: Panel, window: int, sessions: int):
        self.name = strategy.name
        self._strategy, self._panel, self._window, self._sessions = strategy, panel, window, sessions

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction | None:
        session = self._panel.date_index(view.date) - self._sessions
        return self._strategy.decide(MarketView(self._panel, session, view.asset_indices, self._window), state)


def delay(product: Product, panel: Panel) -> Finding:
    """What is earned fades with the age of what is known; it does not hang on a single session.

    It fails where one session's delay costs a Sharpe ratio of more than 2 and three standard errors. What is found in 80 % of
    cases is in the text, and shrinks with the square root of the sessions.

    Raises:
        NotEnoughDataError: if nothing was ever held, or if a drop of 6 would not be found in 80 % of cases.
    """
    court = product.court(panel)
    walks = [
        product.walk(Delayed(product.strategy(panel), panel, court.window, sessions), court, None)
        for sessions in DELAYS
    ]
    if not np.abs(walks[0].held_KR).sum():
        raise NotEnoughDataError("nothing was held, so nothing can hang on a session")
    net_TK = np.column_stack([walk.net_T for walk in walks])
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
    return Finding("delay", not failed, drop, text)


def fresh_state(config: FinJEPAConfig, count: int) -> PortfolioState:
    """All in cash."""
    return PortfolioSimulator(config.portfolio).start((1, count))
