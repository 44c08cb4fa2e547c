"""The backtest loop: decided at a close, filled at the next close, held until the fill of the next decision.

The mechanics are those of `finjepa_model.portfolio` in float64, the same that training and planning use; the live book takes the
same `MarketStep`. A portfolio is over the roster, all assets that are in some universe of the block. A strategy sees the universe
of the day; what has left it is sold at the next fill and counts as cash.

Shapes: T sessions of a block, K decisions, N assets of a universe, R assets of the roster, S strategies side by side; a leading 1
is the batch of one portfolio.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.market_view import MarketView, Universe, panel_beta, panel_liquidity, universes
from finjepa_model.portfolio import Ledger, Liquidity, PortfolioSimulator, PortfolioState
from finjepa_pipeline.backtest.strategies import Strategy


@dataclass(frozen=True)
class BacktestSetup:
    """The conditions that every strategy of a block has in common: sessions, universes, fill and costs.

    Attributes:
        decisions: indices of the sessions at whose close a decision is made; each step ends at the next one, the last at `end`.
        window: sessions of history that an asset needs to be decided on.
    """

    panel: Panel
    costs: PortfolioConfig
    decisions: tuple[int, ...]
    end: int
    universes: tuple[Universe, ...]
    window: int

    @classmethod
    def over(
        cls,
        panel: Panel,
        block: tuple[int, int],
        costs: PortfolioConfig,
        *,
        stride: int,
        n_assets: int,
        window: int,
        allowed: np.ndarray | None = None,
    ) -> "BacktestSetup":
        """A setup over the sessions [block[0], block[1]), with a decision every `stride` sessions.

        Args:
            allowed: bool by asset of the panel, which may be traded; all where None.

        Raises:
            FinJEPAError: if the block is too short for one decision, or nothing is eligible in it.
        """
        first, stop = block
        decisions = tuple(range(first, stop - 1, stride))
        if not decisions:
            raise FinJEPAError(f"a backtest block of {stop - first} sessions is too short; ingest a longer history")
        chosen = universes(panel, decisions, n_assets, window, allowed)
        return cls(panel, costs, decisions, stop - 1, tuple(chosen), window)

    def views(self) -> list[MarketView]:
        """What is known at each decision."""
        return [MarketView(self.panel, day, self._universe(day).assets_N, self.window) for day in self.decisions]

    @cached_property
    def roster_R(self) -> np.ndarray:
        """int64, every asset that is in some universe, ascending."""
        return np.unique(np.concatenate([universe.assets_N for universe in self.universes]))

    @cached_property
    def steps(self) -> tuple["MarketStep", ...]:
        """What happens between each decision and the next."""
        ends = (*self.decisions[1:], self.end)
        spans = zip(self.decisions, ends, strict=True)
        return tuple(MarketStep.of(self.panel, self.roster_R, session, end) for session, end in spans)

    @property
    def dates_T(self) -> np.ndarray:
        """datetime64, the sessions with a return: those after the first decision's."""
        return self.panel.dates[self.decisions[0] + 1 : self.end + 1]

    def places(self, session: int) -> np.ndarray:
        """int64 [N], where the universe of a decision stands on the roster."""
        return np.searchsorted(self.roster_R, self._universe(session).assets_N)

    def _universe(self, session: int) -> Universe:
        return [universe for universe in self.universes if universe.start <= session][-1]


@dataclass(frozen=True)
class MarketStep:
    """The market of the roster between a decision and the next, as the mechanics take it."""

    returns_1TR: Tensor
    market_returns_1T: Tensor
    beta_1R: Tensor
    tradable_1TR: Tensor
    delisted_1TR: Tensor
    delisting_return_R: Tensor
    liquidity: Liquidity | None

    @classmethod
    def of(cls, panel: Panel, roster_R: np.ndarray, session: int, end: int) -> "MarketStep":
        """From the close of one session to that of another.

        Args:
            roster_R: int64, the panel's numbers of the assets.
        """
        returns_1RT, tradable_1RT = panel.returns_after(np.array([session]), roster_R[None], end - session)
        returns_1TR = torch.from_numpy(returns_1RT).transpose(1, 2).double()
        market_1T = torch.from_numpy(panel.market_returns[session + 1 : end + 1].astype(np.float64))[None]
        tradable_1TR = torch.from_numpy(tradable_1RT).transpose(1, 2)
        # an asset that lasts to the panel's end is not delisted
        last_R = panel.first[roster_R] + panel.lengths[roster_R] - 1
        delisted_1TR = torch.from_numpy(np.arange(session + 1, end + 1)[:, None] > last_R)[None]
        return cls(
            returns_1TR,
            market_1T,
            torch.from_numpy(panel_beta(panel, session, roster_R))[None],
            tradable_1TR,
            delisted_1TR,
            torch.from_numpy(panel.delisting_return[roster_R]),
            panel_liquidity(panel, session, roster_R),
        )

    def advance(
        self, simulator: PortfolioSimulator, state: PortfolioState, action: PortfolioAction | None
    ) -> tuple[PortfolioState, list[Ledger]]:
        """Order, fill and hold: the state at the next decision, and a ledger for each session."""
        return simulator.step(
            state,
            action,
            self.returns_1TR,
            self.market_returns_1T,
            self.beta_1R,
            self.tradable_1TR,
            self.delisted_1TR,
            self.delisting_return_R,
            simulator.frictions(self.liquidity),
        )


@dataclass(frozen=True)
class StrategyResult:
    """What became of a strategy on a block. Returns, costs and turnover are shares of the wealth at the close before; wealth
    begins at 1.

    Attributes:
        dates_T: datetime64, the sessions after the first decision's; gross_T, net_T: return before and after costs.
        cost_T: commissions, half-spreads, impact, borrow fees; turnover_T: one-way; wealth_T: at the close; hedged_T: bool.
        decided_K: datetime64, the closes of the decisions; ordered_K: bool, whether anything was ordered.
        weights_KR, signals_KR, hedges_K: the decisions, or what was kept; zero outside the universe of the day.
        held_KR: signed shares of wealth when the decision's step ends; assets_R: symbols of the roster.
        expectations: of a planner, columns of `backtest_expectations`.
        forecasts: quality by measure, by forecaster; replays: net_T by replay, see `replayed`.
    """

    strategy: str
    dates_T: np.ndarray
    gross_T: np.ndarray
    net_T: np.ndarray
    cost_T: np.ndarray
    turnover_T: np.ndarray
    wealth_T: np.ndarray
    hedged_T: np.ndarray
    decided_K: np.ndarray
    assets_R: tuple[str, ...]
    ordered_K: np.ndarray
    weights_KR: np.ndarray
    signals_KR: np.ndarray
    hedges_K: np.ndarray
    held_KR: np.ndarray
    expectations: Mapping[str, np.ndarray] | None = None
    forecasts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    replays: Mapping[str, np.ndarray] = field(default_factory=dict)


def simulate(strategy: Strategy, setup: BacktestSetup, views: Sequence[MarketView] | None = None) -> StrategyResult:
    """Trade a strategy through a block: the backtest loop.

    Args:
        views: `setup.views()`, where the caller has them already.

    Raises:
        FinJEPAError: if the strategy decides something that is not a `PortfolioAction` over its assets, or loses all wealth.
    """
    simulator = PortfolioSimulator(setup.costs)
    state = simulator.start((1, len(setup.roster_R)))
    ledgers: list[Ledger] = []
    hedged: list[bool] = []
    decided: list[tuple[bool, PortfolioAction, np.ndarray]] = []
    for session, step, view in zip(setup.decisions, setup.steps, views or setup.views(), strict=True):
        action = decide_at(strategy, view, state, setup.places(session))
        kept = PortfolioAction(state.holdings_XN.abs(), state.signals_XN, state.hedged_X)
        hedged.append(bool(state.hedge_X < 0))  # the session of the fill begins with the hedge of before
        state, made = step.advance(simulator, state, action)
        hedged += [bool(state.hedge_X < 0)] * (len(made) - 1)
        ledgers += made
        decided.append((action is not None, action or kept, state.holdings_XN[0].numpy()))
    ordered, actions, held = zip(*decided, strict=True)
    pnl_T, cost_T, turnover_T = (
        torch.cat([getattr(ledger, name) for ledger in ledgers]).numpy() for name in ("pnl_X", "cost_X", "turnover_X")
    )
    wealth_T = 1 + np.cumsum(pnl_T - cost_T)
    if not (wealth_T > 0).all():
        ruin = setup.dates_T[int(np.argmax(wealth_T <= 0))]
        raise FinJEPAError(f"{strategy.name} lost all its wealth on {ruin}; a return from there on has no meaning")
    before_T = np.concatenate([[1.0], wealth_T[:-1]])
    return StrategyResult(
        strategy=strategy.name,
        dates_T=setup.dates_T,
        gross_T=pnl_T / before_T,
        net_T=(pnl_T - cost_T) / before_T,
        cost_T=cost_T / before_T,
        turnover_T=turnover_T,
        wealth_T=wealth_T,
        hedged_T=np.array(hedged),
        decided_K=setup.panel.dates[list(setup.decisions)],
        assets_R=tuple(setup.panel.assets[asset] for asset in setup.roster_R),
        ordered_K=np.array(ordered),
        weights_KR=torch.cat([action.weights_XN for action in actions]).numpy(),
        signals_KR=torch.cat([action.signals_XN for action in actions]).numpy(),
        hedges_K=torch.cat([action.hedge_X for action in actions]).numpy(),
        held_KR=np.stack(held),
    )


def decide_at(
    strategy: Strategy, view: MarketView, state: PortfolioState, places_N: np.ndarray
) -> PortfolioAction | None:
    """What a strategy decides at a close, over the roster; None for no orders. Positions in assets that have left the universe of
    the day are about to be sold, and the strategy sees them as cash.

    Args:
        state: of the roster.
        places_N: int64, where the assets of the view stand on the roster.

    Raises:
        FinJEPAError: if the strategy decides something that is not a `PortfolioAction` over the view's assets.
    """
    positions_1N = state.positions_XN[:, places_N]
    leaving_1 = state.positions_XN.sum(-1) - positions_1N.sum(-1)
    seen = replace(
        state,
        positions_XN=positions_1N,
        signals_XN=state.signals_XN[:, places_N],
        orders_XN=None if state.orders_XN is None else state.orders_XN[:, places_N],
        cash_X=state.cash_X + leaving_1,
    )
    action = strategy.decide(view, seen)
    if action is None:
        return None
    action, empty_1R = _checked(action, view, strategy.name), torch.zeros_like(state.positions_XN)
    weights_1R, signals_1R = (
        empty_1R.index_copy(1, torch.from_numpy(places_N), x_1N) for x_1N in (action.weights_XN, action.signals_XN)
    )
    return PortfolioAction(weights_1R, signals_1R, action.hedge_X)


def _checked(action: PortfolioAction, view: MarketView, name: str) -> PortfolioAction:
    shape = (1, len(view.present_N))
    if action.weights_XN.shape != shape or action.signals_XN.shape != shape or action.hedge_X.shape != (1,):
        raise FinJEPAError(
            f"{name} decided on {view.date} with shapes other than weights {shape}, signals {shape}, hedge (1,)"
        )
    weights_1N, signals_1N, hedge_1 = (x.double() for x in (action.weights_XN, action.signals_XN, action.hedge_X))
    sound = (
        bool((torch.isfinite(weights_1N) & (weights_1N >= -1e-9)).all())
        and abs(float(weights_1N.sum()) - 1) <= 1e-6
        and bool((signals_1N.abs() <= 1).all())
        and 0 <= float(hedge_1) <= 1
    )
    if not sound:
        raise FinJEPAError(
            f"{name} decided on {view.date} for weights that are negative or do not sum to 1, "
            "or for signals outside -1..1, or for a hedge outside 0..1"
        )
    return PortfolioAction(weights_1N.clamp(min=0), signals_1N, hedge_1)


# The decisions of a block traded once more, under other costs or with parts of the action switched off.

COST_GRID = (0.0, 5.0, 10.0, 25.0, 50.0)  # one-way basis points; spreads by tier and impact come on top


def without_costs(costs: PortfolioConfig) -> PortfolioConfig:
    """The same rules where trading, borrowing and margin cost nothing."""
    return replace(
        costs,
        cost_bps=0.0,
        hedge_cost_bps=0.0,
        tier_spread_bps=(0.0,) * len(costs.tier_spread_bps),
        impact=0.0,
        borrow_rate=0.0,
        tier_borrow_rate=(0.0,) * len(costs.tier_borrow_rate),
        margin_spread=0.0,
    )


def replayed(results: Sequence[StrategyResult], setup: BacktestSetup) -> list[StrategyResult]:
    """The results with their `replays`:

    `cost_<bps>`: commission and half-spread of the most liquid tier, and the hedge's, at each level.
    `weights`, `signals`, `hedge`, `net`: one part of the action after the other switched on, without costs, and then all with
    costs: long whatever has a budget; signals as they were decided; the hedge too; after costs. The effect of a part is the
    difference to the part before, that of the weights the difference to 1/N.
    """
    weights_DKR, signals_DKR, hedges_DK, ordered_DK = (
        torch.from_numpy(np.stack([getattr(result, name) for result in results], axis=1))
        for name in ("weights_KR", "signals_KR", "hedges_K", "ordered_K")
    )
    free, none_DK = without_costs(setup.costs), torch.zeros_like(hedges_DK)
    ways = {f"cost_{bps:g}": (signals_DKR, hedges_DK, replace(setup.costs, cost_bps=bps)) for bps in COST_GRID} | {
        "weights": ((weights_DKR > 0).double(), none_DK, free),
        "signals": (signals_DKR, none_DK, free),
        "hedge": (signals_DKR, hedges_DK, free),
    }
    net = {
        name: _traded_again(setup, costs, zip(weights_DKR, signals, hedges, ordered_DK, strict=True))
        for name, (signals, hedges, costs) in ways.items()
    }
    return [
        replace(result, replays={name: net_TK[:, k] for name, net_TK in net.items()} | {"net": result.net_T})
        for k, result in enumerate(results)
    ]


def _traded_again(setup: BacktestSetup, costs: PortfolioConfig, orders: Iterable[Sequence[Tensor]]) -> np.ndarray:
    """Net daily returns_TK of K strategies side by side; orders of a decision: weights_KR, signals_KR, hedges_K, ordered_K."""
    simulator, net, state = PortfolioSimulator(costs), [], None
    for step, (weights_KR, signals_KR, hedges_K, ordered_K) in zip(setup.steps, orders, strict=True):
        state = state or simulator.start(tuple(weights_KR.shape))
        action, ordered_K1 = PortfolioAction(weights_KR, signals_KR, hedges_K), ordered_K[:, None]
        state = replace(  # orders are left in the book, for the mechanics to fill as they would fill waiting ones
            state,
            orders_XN=torch.where(ordered_K1, action.positions(costs.allow_short, costs.max_gross), state.waiting_XN),
            signals_XN=torch.where(ordered_K1, action.signals_XN, state.signals_XN),
            hedged_X=torch.where(ordered_K, action.hedge_X * costs.allow_hedge, state.hedged_X),
        )
        wealth_K = state.wealth_X
        state, ledgers = step.advance(simulator, state, None)
        for ledger in ledgers:
            earned_K = ledger.pnl_X - ledger.cost_X
            net.append(earned_K / wealth_K)
            wealth_K = wealth_K + earned_K
    return torch.stack(net).numpy()
