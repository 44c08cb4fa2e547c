"""Walks a strategy through history: decided at a close, filled at the next close, held until the next decision's fill.

The mechanics are those of `finjepa_model.portfolio` in float64, the same that training and planning use. A portfolio
lives on the roster, all assets that are in some universe of the block; a strategy sees the universe of the day, and
what has left it is sold at the next fill and counts as cash.

Shapes: T sessions of a block, K decisions, N assets of a universe, R assets of the roster; a leading 1 is the batch of
one portfolio.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.portfolio import Ledger, Liquidity, PortfolioSimulator, PortfolioState
from finjepa_pipeline.backtest.market_view import MarketView, Universe, panel_liquidity, universes
from finjepa_pipeline.backtest.strategies import Strategy

REBALANCE_UNIVERSE_EVERY = 252  # sessions


@dataclass(frozen=True)
class Court:
    """The conditions under which every strategy of a block is judged: the same sessions, universe, lag and costs.

    Attributes:
        decisions: indices of the sessions at whose close a decision is made, ascending; each step ends at the next one,
            the last at `end`.
        end: index of the last session of the block.
        window: sessions of history that an asset needs to be decided on.
        overnight: float64 by panel row, simple return from the close before to the open; where it is given, orders are
            filled at the next open, otherwise at the next close.
    """

    panel: Panel
    costs: PortfolioConfig
    decisions: tuple[int, ...]
    end: int
    universes: tuple[Universe, ...]
    window: int
    overnight: np.ndarray | None = None

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
        overnight: np.ndarray | None = None,
    ) -> "Court":
        """A court over the sessions [block[0], block[1]), with a decision every `stride` sessions.

        Args:
            allowed: bool by asset of the panel, who may be traded; everybody where None.

        Raises:
            FinJEPAError: if the block is too short for one decision, or nothing is eligible in it.
        """
        decisions = tuple(range(block[0], block[1] - 1, stride))
        if not decisions:
            raise FinJEPAError(
                f"a backtest block of {block[1] - block[0]} sessions is too short; ingest a longer history"
            )
        chosen = universes(panel, decisions, n_assets, window, REBALANCE_UNIVERSE_EVERY, allowed)
        return cls(panel, costs, decisions, block[1] - 1, tuple(chosen), window, overnight)

    def views(self) -> list[MarketView]:
        """What is known at each decision."""
        return [
            MarketView(self.panel, session, self._universe(session).assets_N, self.window) for session in self.decisions
        ]

    @cached_property
    def roster_R(self) -> np.ndarray:
        """int64, every asset that is in some universe, ascending."""
        return np.unique(np.concatenate([universe.assets_N for universe in self.universes]))

    @cached_property
    def steps(self) -> tuple["MarketStep", ...]:
        """What happens between each decision and the next."""
        ends = (*self.decisions[1:], self.end)
        return tuple(
            MarketStep.of(self.panel, self.roster_R, session, end, self.overnight)
            for session, end in zip(self.decisions, ends, strict=True)
        )

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
    fills_at_open: bool

    @classmethod
    def of(
        cls, panel: Panel, roster_R: np.ndarray, session: int, end: int, overnight: np.ndarray | None = None
    ) -> "MarketStep":
        """From the close of one session to that of another.

        Args:
            roster_R: int64, the panel's numbers of the assets.
            overnight: see `Court`; orders are filled at the next open where it is given.
        """
        returns_1RT, tradable_1RT = panel.returns_after(np.array([session]), roster_R[None], end - session)
        returns_1TR = torch.from_numpy(returns_1RT).transpose(1, 2).double()
        market_1T = torch.from_numpy(panel.market_returns[session + 1 : end + 1].astype(np.float64))[None]
        tradable_1TR = torch.from_numpy(tradable_1RT).transpose(1, 2)
        delisted_1TR = _delisted(panel, session, end, roster_R)
        if overnight is not None:  # the night and the day of the fill become two sessions
            rows_R = panel.rows(session + 1, roster_R)
            night_1R = torch.from_numpy(np.where(rows_R >= 0, overnight[rows_R], 0.0))[None]
            returns_1TR = _split(returns_1TR, night_1R)
            market_1T = _split(market_1T, night_1R[:, torch.from_numpy(rows_R >= 0)].mean(-1))
            tradable_1TR, delisted_1TR = (torch.cat([x[:, :1], x], 1) for x in (tradable_1TR, delisted_1TR))
        return cls(
            returns_1TR,
            market_1T,
            torch.from_numpy(_beta(panel, session, roster_R))[None],
            tradable_1TR,
            delisted_1TR,
            torch.from_numpy(panel.delisting_return[roster_R]),
            panel_liquidity(panel, session, roster_R),
            overnight is not None,
        )

    def advance(
        self, simulator: PortfolioSimulator, state: PortfolioState, action: PortfolioAction | None
    ) -> tuple[PortfolioState, list[Ledger]]:
        """Order, fill and hold: the state at the next decision, and a ledger for each session.

        With a fill at the open, interest and fees of the session of the fill are owed for its night, by what is held then.
        """
        sessions_T = (1.0, 0.0, *[1.0] * (self.returns_1TR.shape[1] - 2)) if self.fills_at_open else None
        state, ledgers = simulator.step(
            state,
            action,
            self.returns_1TR,
            self.market_returns_1T,
            self.beta_1R,
            self.tradable_1TR,
            self.delisted_1TR,
            self.delisting_return_R,
            simulator.frictions(self.liquidity),
            sessions_T,
        )
        return state, [ledgers[0] + ledgers[1], *ledgers[2:]] if self.fills_at_open else ledgers


def _split(returns_1TX: Tensor, night_1X: Tensor) -> Tensor:
    """The first session as its night and its day; night and day compound to it."""
    first_1X = returns_1TX[:, 0]
    day_1X = (1 + first_1X) / (1 + night_1X) - 1
    return torch.cat([night_1X.unsqueeze(1), day_1X.unsqueeze(1), returns_1TX[:, 1:]], 1)


@dataclass(frozen=True)
class Walk:
    """What became of a strategy. Returns, costs and turnover are shares of the wealth at the close before; wealth
    begins at 1.

    Attributes:
        dates_T: datetime64, the sessions after the first decision's.
        gross_T: return before costs; net_T: after.
        cost_T: commissions, half-spreads, borrow fees; turnover_T: one-way; wealth_T: at the close; hedged_T: bool.
        decided_K: datetime64, the closes of the decisions; held_KR: signed shares of wealth when the decision's step
            ends.
        ordered_K: bool, whether the decision was to order anything.
        weights_KR, signals_KR, hedges_K: the decisions, or what was kept where nothing was ordered; zero outside the
            universe of the day.
        assets_R: symbols of the roster.
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


def walk(strategy: Strategy, court: Court, views: Sequence[MarketView] | None = None) -> Walk:
    """Trade a strategy through a court's block.

    Args:
        views: `court.views()`, where the caller has them already.

    Raises:
        FinJEPAError: if the strategy decides something that is not a `PortfolioAction` over the view's assets.
    """
    roster_R = court.roster_R
    simulator = PortfolioSimulator(court.costs)
    state = simulator.start((1, len(roster_R)))
    ledgers: list[Ledger] = []
    hedged: list[bool] = []
    actions: list[PortfolioAction] = []
    ordered: list[bool] = []
    held: list[np.ndarray] = []
    for session, step, view in zip(court.decisions, court.steps, views or court.views(), strict=True):
        places_N = court.places(session)
        action = decide_at(strategy, view, state, places_N)
        kept = PortfolioAction(state.holdings_XN.abs(), state.signals_XN, state.hedged_X)
        hedged_before = bool(state.hedge_X < 0)
        state, made = step.advance(simulator, state, action)
        ledgers += made
        hedged += [hedged_before] + [bool(state.hedge_X < 0)] * (len(made) - 1)
        actions.append(kept if action is None else action)
        ordered.append(action is not None)
        held.append(state.holdings_XN[0].numpy())
    return _as_walk(strategy.name, court, ledgers, hedged, actions, np.array(ordered), np.stack(held))


def decide_at(
    strategy: Strategy, view: MarketView, state: PortfolioState, places_N: np.ndarray
) -> PortfolioAction | None:
    """What a strategy decides at a close, over the roster; None for no orders.

    Args:
        state: of the roster.
        places_N: int64, where the assets of the view stand on the roster.

    Raises:
        FinJEPAError: if the strategy decides something that is not a `PortfolioAction` over the view's assets.
    """
    action = strategy.decide(view, _seen(state, places_N))
    if action is None:
        return None
    return _on_roster(_checked(action, view, strategy.name), places_N, state.positions_XN.shape[-1])


def _seen(state: PortfolioState, places_N: np.ndarray) -> PortfolioState:
    """The portfolio over the universe of the day; positions in assets that have left it are about to be sold, and count
    as cash.
    """
    positions_1N = state.positions_XN[:, places_N]
    leaving_1 = state.positions_XN.sum(-1) - positions_1N.sum(-1)
    return replace(
        state,
        positions_XN=positions_1N,
        signals_XN=state.signals_XN[:, places_N],
        orders_XN=None if state.orders_XN is None else state.orders_XN[:, places_N],
        cash_X=state.cash_X + leaving_1,
    )


def _checked(action: PortfolioAction, view: MarketView, name: str) -> PortfolioAction:
    shape = (1, len(view.present_N))
    weights_1N = action.weights_XN.double()
    if weights_1N.shape != shape or action.signals_XN.shape != shape or action.hedge_X.shape != (1,):
        raise FinJEPAError(
            f"{name} decided on {view.date} with shapes other than weights {shape}, signals {shape}, hedge (1,)"
        )
    signals_1N, hedge_1 = action.signals_XN.double(), action.hedge_X.double()
    sound = (
        bool(torch.isfinite(weights_1N).all())
        and bool((weights_1N >= -1e-9).all())
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


def _on_roster(action: PortfolioAction, places_N: np.ndarray, n_roster: int) -> PortfolioAction:
    def place(values_1N: Tensor) -> Tensor:
        return values_1N.new_zeros(1, n_roster).index_copy(1, torch.from_numpy(places_N), values_1N)

    return PortfolioAction(place(action.weights_XN), place(action.signals_XN), action.hedge_X)


def _beta(panel: Panel, session: int, roster_R: np.ndarray) -> np.ndarray:
    rows_R = panel.rows(session, roster_R)
    return np.where(rows_R >= 0, panel.beta[rows_R], 1.0).astype(np.float64)


def _delisted(panel: Panel, session: int, end: int, roster_R: np.ndarray) -> Tensor:
    """bool [1, T, R]: the sessions after an asset's last row. An asset that lasts until the panel's end has not been
    delisted.
    """
    last_R = panel.first[roster_R] + panel.lengths[roster_R] - 1
    days_T = np.arange(session + 1, end + 1)
    return torch.from_numpy(days_T[:, None] > last_R[None, :])[None]


def _as_walk(
    name: str,
    court: Court,
    ledgers: list[Ledger],
    hedged: list[bool],
    actions: list[PortfolioAction],
    ordered_K: np.ndarray,
    held_KR: np.ndarray,
) -> Walk:
    pnl_T = torch.cat([ledger.pnl_X for ledger in ledgers]).numpy()
    cost_T = torch.cat([ledger.cost_X for ledger in ledgers]).numpy()
    wealth_T = 1 + np.cumsum(pnl_T - cost_T)
    if not (wealth_T > 0).all():
        ruin = court.panel.dates[court.decisions[0] + 1 + int(np.argmax(wealth_T <= 0))]
        raise FinJEPAError(f"{name} lost all its wealth on {ruin}; a return from there on has no meaning")
    before_T = np.concatenate([[1.0], wealth_T[:-1]])
    return Walk(
        strategy=name,
        dates_T=court.dates_T,
        gross_T=pnl_T / before_T,
        net_T=(pnl_T - cost_T) / before_T,
        cost_T=cost_T / before_T,
        turnover_T=torch.cat([ledger.turnover_X for ledger in ledgers]).numpy(),
        wealth_T=wealth_T,
        hedged_T=np.array(hedged),
        decided_K=court.panel.dates[list(court.decisions)],
        assets_R=tuple(court.panel.assets[i] for i in court.roster_R),
        ordered_K=ordered_K,
        weights_KR=torch.cat([action.weights_XN for action in actions]).numpy(),
        signals_KR=torch.cat([action.signals_XN for action in actions]).numpy(),
        hedges_K=torch.cat([action.hedge_X for action in actions]).numpy(),
        held_KR=held_KR,
    )
