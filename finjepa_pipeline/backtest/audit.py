"""The house on trial: does anything that is decided at a close know what comes after it, and is luck mistaken for skill?

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
from finjepa_model.portfolio import PortfolioSimulator, PortfolioState
from finjepa_model.training.batches import BatchSource
from finjepa_model.training.panel import Panel
from finjepa_model.training.splits import history_needed, split_dates
from finjepa_pipeline.backtest.engine import Court, Walk, walk
from finjepa_pipeline.backtest.market_view import MarketView
from finjepa_pipeline.backtest.metrics import sharpe
from finjepa_pipeline.backtest.strategies import EqualWeight, Strategy, long_only

DELAYS = (0, 1, 2, 5)  # sessions
_ORDERS = 8
_CLAIRVOYANT_T = 5.0
_COLLAPSE = 2.0  # annualised Sharpe ratio that one session's delay may cost
_COLLAPSE_SIGMAS = 3.0


@dataclass(frozen=True)
class Finding:
    """The verdict of one test.

    Attributes:
        value: the number that was judged; see the text for what it is.
        of_data: a failure of the prices, features or universe: it concerns every planner.
    """

    test: str
    passed: bool
    value: float
    text: str
    of_data: bool = False


def model_labels(panel: Panel, config: FinJEPAConfig, dates_B: np.ndarray, assets_BN: np.ndarray) -> np.ndarray:
    """What a world model is trained to foresee: step_return_BSN, of the last context step at `dates_B`."""
    source = BatchSource(panel, config, split_dates(len(panel.dates), config).train)
    return source.batch(dates_B, assets_BN).step_return_BSN.numpy()


@dataclass(frozen=True)
class Product:
    """The parts that are on trial.

    Attributes:
        strategy: a new strategy for a panel.
        walk: the engine; labels: what models are trained on.
        n_assets: largest universe.
    """

    strategy: Callable[[Panel], Strategy]
    config: FinJEPAConfig
    walk: Callable[[Strategy, Court, Sequence[MarketView] | None], Walk] = walk
    labels: Callable[[Panel, FinJEPAConfig, np.ndarray, np.ndarray], np.ndarray] = field(default=model_labels)
    n_assets: int = 20

    def court(self, panel: Panel, *, free: bool = False) -> Court:
        """The test block under the config's costs, or under none."""
        costs = self.config.portfolio
        if free:
            costs = FinJEPAConfig().override(_FREE).portfolio
        block = split_dates(len(panel.dates), self.config).test
        return Court.over(
            panel,
            block,
            costs,
            stride=self.config.model.stride,
            n_assets=self.n_assets,
            window=history_needed(self.config),
        )


_FREE = {
    "portfolio.cost_bps": "0",
    "portfolio.hedge_cost_bps": "0",
    "portfolio.borrow_rate": "0",
    "portfolio.tier_spread_bps": "[0, 0, 0]",
    "portfolio.tier_borrow_rate": "[0, 0, 0]",
    "portfolio.impact": "0",
}


def fill_lag(product: Product, panel: Panel) -> Finding:
    """A strategy that knows which asset will rise most in the session after its decision must not earn that session: it is
    filled at its close at the earliest."""
    court = product.court(panel, free=True)

    class Clairvoyant:
        name = "clairvoyant"

        def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction:
            rows_N = panel.rows(panel.date_index(view.date) + 1, view.asset_indices)
            tomorrow_N = np.where((rows_N >= 0) & view.present_N, panel.returns[rows_N], -np.inf)
            weights_N = np.zeros(len(rows_N))
            weights_N[int(np.argmax(tomorrow_N))] = 1.0
            return long_only(weights_N)

    views = court.views()
    ahead, plain = (product.walk(strategy, court, views).gross_T for strategy in (Clairvoyant(), EqualWeight()))
    fills = np.array(court.decisions[1:]) - court.decisions[0]
    gain_D = (ahead - plain)[fills]
    error = gain_D.std(ddof=1) / np.sqrt(len(gain_D))
    t = float(gain_D.mean() / error) if error > 0 else 0.0
    text = (
        f"a clairvoyant of the next session earns {gain_D.mean():+.2%} over 1/N in it (t {t:.1f}, {len(gain_D)} fills)"
    )
    return Finding("fill_lag", t < _CLAIRVOYANT_T, t, text)


def label_alignment(product: Product, panel: Panel) -> Finding:
    """Labels move with the returns of their own step, from the session after the fill on, and with no other session's."""
    config = product.config
    stride, context = config.model.stride, config.model.context_steps
    train = split_dates(len(panel.dates), config).train
    start = history_needed(config) + stride
    alive_A = np.flatnonzero((panel.first <= start - history_needed(config)) & (panel.lengths >= train[1]))
    assets_1N = (alive_A if len(alive_A) else np.argsort(panel.first, kind="stable"))[None, :3]
    last = train[1] - stride * (config.loss.rollout_steps + 2) - 2
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
    """The order of the assets does not matter: exactly, or, for planners that draw candidates, without a bias to places."""
    court = product.court(panel)
    view = court.views()[len(court.decisions) // 2]
    rng = np.random.default_rng(0)
    count = len(view.asset_indices)
    by_asset, places = [], []
    for _ in range(_ORDERS):
        order_N = rng.permutation(count)
        shuffled = MarketView(panel, panel.date_index(view.date), view.asset_indices[order_N], court.window)
        action = product.strategy(panel).decide(shuffled, fresh_state(product.config, count))
        if action is None:
            return Finding("permutation", True, 0.0, "no decision at this close to permute")
        exposure_N = (action.weights_XN * action.signals_XN)[0].double().numpy()
        by_asset.append(exposure_N[np.argsort(order_N)])
        places.append(np.argsort(order_N))
    deviation_ON = np.array(by_asset) - np.mean(by_asset, axis=0)
    largest = float(np.abs(deviation_ON).max())
    if largest <= 1e-6:
        return Finding("permutation", True, largest, f"weights are the same in {_ORDERS} orders of {count} assets")
    rho = float(np.corrcoef(deviation_ON.ravel(), np.array(places).ravel())[0, 1])
    t = rho * np.sqrt(deviation_ON.size)
    text = (
        f"weights differ by up to {largest:.3f} between orders, as candidates are drawn; correlation with the place "
        f"{rho:+.3f} (t {t:+.1f})"
    )
    return Finding("permutation", bool(abs(t) < 3), largest, text)


class Delayed:
    """A strategy that sees each close some sessions late."""

    def __init__(self, strategy: Strategy, panel: Panel, window: int, sessions: int):
        self.name = strategy.name
        self._strategy, self._panel, self._window, self._sessions = strategy, panel, window, sessions

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction | None:
        session = self._panel.date_index(view.date) - self._sessions
        return self._strategy.decide(MarketView(self._panel, session, view.asset_indices, self._window), state)


def delay(product: Product, panel: Panel) -> Finding:
    """What is earned fades with the age of what is known; it does not hang on a single session."""
    court = product.court(panel)
    net = [
        product.walk(Delayed(product.strategy(panel), panel, court.window, sessions), court, None).net_T
        for sessions in DELAYS
    ]
    ratio_K = np.nan_to_num(sharpe(np.column_stack(net)))
    drop = float(ratio_K[0] - ratio_K[1])
    gap_T = net[0] - net[1]
    t = float(gap_T.mean() / gap_T.std(ddof=1) * np.sqrt(len(gap_T))) if gap_T.std() > 0 else 0.0
    collapsed = drop > _COLLAPSE and t > _COLLAPSE_SIGMAS
    ratios = ", ".join(f"{sessions}: {ratio:.2f}" for sessions, ratio in zip(DELAYS, ratio_K, strict=True))
    text = f"Sharpe ratio by sessions of delay {ratios}; the first costs {drop:+.2f} (t {t:.1f})"
    return Finding("delay", not collapsed, drop, text)


def fresh_state(config: FinJEPAConfig, count: int) -> PortfolioState:
    """All in cash."""
    return PortfolioSimulator(config.portfolio).start((1, count))
