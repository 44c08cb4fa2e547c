"""Exact portfolio mechanics: drift, trading costs, borrow fees, cash, the hedge, delisting.

The same code is the simulator that training data come from, the planner's model of its own portfolio, and the backtest.
Money is conserved: wealth after = wealth before + P&L - costs.

Shapes: X any batch dimensions (dates, candidates, portfolios), N assets, T sessions, G portfolio scalars. Inputs broadcast
over X. Positions, cash and costs are money; weights and turnover are shares of wealth.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig

SCALARS = (
    "cash",  # share of wealth
    "gross",  # sum of absolute positions, share of wealth
    "net",
    "concentration",  # sum of squared positions
    "hedge",  # value of the market proxy held, share of wealth (negative when hedged)
    "beta",  # to the market proxy, hedge included
    "step_return",  # log growth of wealth since the last decision, times 10
    "step_cost",  # costs since the last decision, share of wealth, times 100
    "step_turnover",  # one-way
    "drawdown",  # from the highest wealth so far, times 10
)


@dataclass(frozen=True)
class PortfolioState:
    """A portfolio at a close."""

    positions_XN: Tensor  # money, negative when short
    cash_X: Tensor
    hedge_X: Tensor  # money in the market proxy, negative when short
    signals_XN: Tensor  # of the last action
    peak_X: Tensor  # highest wealth at a close so far
    decided_wealth_X: Tensor  # wealth at the last decision
    step_cost_X: Tensor  # money, since the last decision
    step_turnover_X: Tensor  # share of wealth, since the last decision

    @property
    def wealth_X(self) -> Tensor:
        return self.positions_XN.sum(-1) + self.cash_X + self.hedge_X

    @property
    def holdings_XN(self) -> Tensor:
        """Signed shares of wealth."""
        return self.positions_XN / self.wealth_X.unsqueeze(-1)

    def scalars(self, beta_XN: Tensor) -> Tensor:
        """The state in numbers of order one, as listed in `SCALARS`.

        Args:
            beta_XN: betas of the assets to the market proxy.

        Returns:
            scalars_XG.
        """
        wealth_X, holdings_XN = self.wealth_X, self.holdings_XN
        hedge_X = self.hedge_X / wealth_X
        return torch.stack(
            [
                self.cash_X / wealth_X,
                holdings_XN.abs().sum(-1),
                holdings_XN.sum(-1),
                holdings_XN.square().sum(-1),
                hedge_X,
                (holdings_XN * beta_XN).sum(-1) + hedge_X,
                10 * torch.log(wealth_X / self.decided_wealth_X),
                100 * self.step_cost_X / wealth_X,
                self.step_turnover_X,
                10 * (wealth_X / self.peak_X - 1),
            ],
            dim=-1,
        )

    def map(self, function) -> "PortfolioState":
        """Apply a function of one tensor to each part; it must act on batch dimensions only."""
        return PortfolioState(**{name: function(value) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Ledger:
    """What happened between two closes, in money; turnover is one-way, as a share of wealth."""

    pnl_X: Tensor
    cost_X: Tensor
    turnover_X: Tensor

    def __add__(self, other: "Ledger") -> "Ledger":
        return Ledger(self.pnl_X + other.pnl_X, self.cost_X + other.cost_X, self.turnover_X + other.turnover_X)


class PortfolioSimulator:
    """Moves portfolios through time under `PortfolioConfig`. It holds no state and learns nothing."""

    def __init__(self, config: PortfolioConfig):
        self.config = config
        self._asset_cost = config.cost_bps * 1e-4
        self._hedge_cost = config.hedge_cost_bps * 1e-4
        self._daily_borrow = config.borrow_rate / config.sessions_per_year
        self._daily_cash = config.cash_rate / config.sessions_per_year

    def start(
        self, shape: tuple[int, ...], *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> PortfolioState:
        """All in cash, wealth 1. `shape` is (*X, N)."""
        one_X = torch.ones(shape[:-1], dtype=dtype, device=device)
        zero_X, zero_XN = torch.zeros_like(one_X), torch.zeros(shape, dtype=dtype, device=device)
        return PortfolioState(zero_XN, one_X, zero_X, zero_XN, one_X, one_X, zero_X, zero_X)

    def drift(
        self, state: PortfolioState, returns_XN: Tensor, market_return_X: Tensor, sessions: int = 1
    ) -> tuple[PortfolioState, Ledger]:
        """Let `sessions` sessions pass: positions earn their simple total returns, cash its rate, shorts pay the borrow fee."""
        asset_pnl_X = (state.positions_XN * returns_XN).sum(-1)
        hedge_pnl_X = state.hedge_X * market_return_X
        cash_pnl_X = state.cash_X * self._daily_cash * sessions
        short_X = state.positions_XN.clamp(max=0).sum(-1).neg() + state.hedge_X.clamp(max=0).neg()
        cost_X = short_X * self._daily_borrow * sessions
        moved = replace(
            state,
            positions_XN=state.positions_XN * (1 + returns_XN),
            hedge_X=state.hedge_X + hedge_pnl_X,
            cash_X=state.cash_X + cash_pnl_X - cost_X,
            step_cost_X=state.step_cost_X + cost_X,
        )
        moved = replace(moved, peak_X=torch.maximum(moved.peak_X, moved.wealth_X))
        return moved, Ledger(asset_pnl_X + hedge_pnl_X + cash_pnl_X, cost_X, torch.zeros_like(cost_X))

    def trade(
        self, state: PortfolioState, action: PortfolioAction, beta_XN: Tensor, tradable_XN: Tensor
    ) -> tuple[PortfolioState, Ledger]:
        """Trade to the action's positions at today's close.

        Targets are shares of the wealth that is left after the costs of the trade, so a full investment never borrows. An
        asset that cannot be traded keeps its position, and the others share what gross exposure is left.

        Args:
            beta_XN: betas to the market proxy, for the size of the hedge.
            tradable_XN: bool.
        """
        wealth_X = state.wealth_X
        target_XN = action.positions(self.config.allow_short)
        stuck_XN = torch.where(tradable_XN, 0.0, state.positions_XN)
        target_XN = torch.where(tradable_XN, target_XN, 0.0)
        stuck_gross_X, target_gross_X = stuck_XN.abs().sum(-1), target_XN.abs().sum(-1).clamp(min=1e-12)
        hedge_on_X = action.hedge_X if self.config.allow_hedge else torch.zeros_like(action.hedge_X)

        positions_XN, hedge_X, traded_X = state.positions_XN, state.hedge_X, torch.zeros_like(wealth_X)
        cost_X = torch.zeros_like(wealth_X)
        for _ in range(self._cost_rounds(wealth_X.dtype)):
            left_X = wealth_X - cost_X
            room_X = (left_X - stuck_gross_X).clamp(min=0) / target_gross_X
            positions_XN = stuck_XN + target_XN * torch.minimum(left_X, room_X).unsqueeze(-1)
            hedge_X = -hedge_on_X * (positions_XN * beta_XN).sum(-1).clamp(min=0)
            traded_X = (positions_XN - state.positions_XN).abs().sum(-1)
            cost_X = self._asset_cost * traded_X + self._hedge_cost * (hedge_X - state.hedge_X).abs()

        turnover_X = traded_X / (2 * wealth_X)
        traded = replace(
            state,
            positions_XN=positions_XN,
            hedge_X=hedge_X,
            cash_X=wealth_X - cost_X - positions_XN.sum(-1) - hedge_X,
            signals_XN=action.signals_XN.expand_as(positions_XN),
            step_cost_X=state.step_cost_X + cost_X,
            step_turnover_X=state.step_turnover_X + turnover_X,
        )
        return traded, Ledger(torch.zeros_like(cost_X), cost_X, turnover_X)

    def _cost_rounds(self, dtype: torch.dtype) -> int:
        """Rounds after which the wealth after costs, a fixed point, is exact in a precision.

        It contracts by the cost rate, 0.001 for 10 bp: six rounds in float64, three in float32.
        """
        rate = self._asset_cost + 3 * self._hedge_cost  # the hedge moves with the positions times their beta, 3 at most
        if rate == 0:
            return 1
        return math.ceil(math.log(torch.finfo(dtype).eps) / math.log(min(rate, 0.9)))

    def delist(
        self, state: PortfolioState, delisted_XN: Tensor, delisting_return: float = 0.0
    ) -> tuple[PortfolioState, Ledger]:
        """Turn positions in assets that have ceased to trade into cash, at their last close times 1 + `delisting_return`."""
        gone_XN = torch.where(delisted_XN, state.positions_XN, 0.0)
        pnl_X = gone_XN.sum(-1) * delisting_return
        closed = replace(
            state, positions_XN=state.positions_XN - gone_XN, cash_X=state.cash_X + gone_XN.sum(-1) + pnl_X
        )
        return closed, Ledger(pnl_X, torch.zeros_like(pnl_X), torch.zeros_like(pnl_X))

    def step(
        self,
        state: PortfolioState,
        action: PortfolioAction,
        returns_XTN: Tensor,
        market_returns_XT: Tensor,
        beta_XN: Tensor,
        tradable_XTN: Tensor,
        delisted_XTN: Tensor | None = None,
    ) -> tuple[PortfolioState, list[Ledger]]:
        """One decision step of T sessions: decided at a close, filled at the next close, held until the last one.

        Args:
            tradable_XTN: bool; the order of an asset that cannot be traded at the fill is dropped, and its position stays.
            delisted_XTN: bool, True from the first session after an asset's last one on; None means that none ends.

        Returns:
            The state at the last close, and a ledger for each session.
        """
        zero_X = torch.zeros_like(state.wealth_X)
        state = replace(state, decided_wealth_X=state.wealth_X, step_cost_X=zero_X, step_turnover_X=zero_X)
        ledgers = []
        for session in range(returns_XTN.shape[-2]):
            state, ledger = self.drift(state, returns_XTN[..., session, :], market_returns_XT[..., session])
            if delisted_XTN is not None:
                state, closing = self.delist(state, delisted_XTN[..., session, :])
                ledger = ledger + closing
            if session == 0:
                state, fill = self.trade(state, action, beta_XN, tradable_XTN[..., session, :])
                ledger = ledger + fill
            ledgers.append(ledger)
        return state, ledgers
