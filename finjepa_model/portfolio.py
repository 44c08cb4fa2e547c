"""Exact portfolio mechanics: drift, interest, trading costs, borrow fees, pending orders, the hedge, delisting.

The same code simulates portfolios for training, planning, the backtest and the live book. Money is conserved: wealth after =
wealth before + P&L - costs. Work on [X, N] is done only where it can matter.

Costs by asset: commission, half-spread and borrow fee by tier of liquidity; square-root impact (Almgren et al. 2005; Toth et
al. 2011).

Shapes: X any batch dimensions (dates, candidates, portfolios), N assets, T sessions, G portfolio scalars. Inputs broadcast
over X. Positions, cash and costs are money; weights and turnover are shares of wealth.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig

_MOST_IMPACT = 0.1  # of the traded value; beyond it the square-root law has not been measured


@dataclass(frozen=True)
class Liquidity:
    """How easily assets are traded, known at the close before the trade."""

    dollar_volume_XN: Tensor  # trailing mean, dollars a day; NaN where it is unknown
    volatility_XN: Tensor  # trailing, of a day's return

    def tier(self, config: PortfolioConfig) -> Tensor:
        """int64 [X, N]: 0 is the most liquid tier, and that of an asset of unknown volume."""
        bounds = torch.as_tensor(config.tier_dollar_volume, dtype=torch.float64, device=self.dollar_volume_XN.device)
        known_XN = self.dollar_volume_XN.double().nan_to_num(torch.inf)
        return (known_XN.unsqueeze(-1) < bounds).sum(-1)


@dataclass(frozen=True)
class Frictions:
    """The prices of trading. A number stands for all assets."""

    spread: Tensor | float  # commission and half-spread, share of the traded value
    impact: Tensor | None  # trading x of money costs impact * x^1.5; None where there is none
    borrow: Tensor | float  # fee on the value held short, a session
    rate: float  # a bound of the costs of a trade, share of wealth

    @classmethod
    def of(cls, config: PortfolioConfig, liquidity: Liquidity | None = None) -> "Frictions":
        """The schedule of a config; without a liquidity every asset is in the first tier and nothing has impact."""
        spread, daily_borrow = config.cost_bps * 1e-4, config.borrow_rate / config.sessions_per_year
        # a hedge moves with the positions times their beta, 3 at most
        rate, gross = spread + 3 * config.hedge_cost_bps * 1e-4, max(config.max_gross, 1.0)
        if liquidity is None:
            return cls(spread, None, daily_borrow, rate * gross)
        tier_XN, like = liquidity.tier(config), liquidity.volatility_XN
        spread_XN = spread + 1e-4 * like.new_tensor(config.tier_spread_bps)[tier_XN]
        borrow_XN = daily_borrow + like.new_tensor(config.tier_borrow_rate)[tier_XN] / config.sessions_per_year
        share_XN = (config.capital / liquidity.dollar_volume_XN.clamp(min=1)).nan_to_num(0.0)
        impact_XN = config.impact * liquidity.volatility_XN * share_XN.sqrt().to(like.dtype)
        rate += 1e-4 * max(config.tier_spread_bps) + (0.02 if config.impact else 0.0)
        return cls(spread_XN, impact_XN if config.impact else None, borrow_XN, rate * gross)

    def rounds(self, dtype: torch.dtype) -> int:
        """After which wealth after costs, a fixed point that contracts by the cost rate, is exact."""
        return 1 if self.rate == 0 else math.ceil(math.log(torch.finfo(dtype).eps) / math.log(min(self.rate, 0.9)))

    def trading(self, traded_XN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of trading these amounts of money: commission and half-spread, impact, and the sum of the amounts; spread_X,
        impact_X, traded_X, money."""
        traded_X = traded_XN.sum(-1)
        spread_X = (self.spread * traded_XN).sum(-1) if isinstance(self.spread, Tensor) else self.spread * traded_X
        if self.impact is None:
            return spread_X, torch.zeros_like(spread_X), traded_X
        # the root's slope is infinite at 0, where nothing is traded
        rate_XN = (traded_XN.clamp(min=1e-30).sqrt() * self.impact).clamp(max=_MOST_IMPACT)
        return spread_X, (rate_XN * traded_XN).sum(-1), traded_X

    def map(self, function: Callable[[Tensor], Tensor]) -> "Frictions":
        """Apply a function of one tensor to each part that is one."""
        return replace(self, **{name: function(part) for name, part in vars(self).items() if isinstance(part, Tensor)})


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
    "volatility",  # a day, as expected, times 50
)


def scalars_of(
    holdings_XN: Tensor,
    hedge_X: Tensor,
    beta_XN: Tensor,
    volatility_X: Tensor,
    *,
    log_growth_X: Tensor | float = 0.0,
    cost_X: Tensor | float = 0.0,
    turnover_X: Tensor | float = 0.0,
    drawdown_X: Tensor | float = 0.0,
) -> Tensor:
    """scalars_XG, `SCALARS` of holdings and a hedge as shares of wealth.

    Args:
        volatility_X: daily, as expected.
        drawdown_X: wealth over its highest so far, less 1.
    """
    net_X = holdings_XN.sum(-1)
    parts = (
        1 - net_X - hedge_X,
        holdings_XN.abs().sum(-1),
        net_X,
        holdings_XN.square().sum(-1),
        hedge_X,
        (holdings_XN * beta_XN).sum(-1) + hedge_X,
        10 * log_growth_X,
        100 * cost_X,
        turnover_X,
        10 * drawdown_X,
        50 * volatility_X,
    )
    return torch.stack([torch.as_tensor(part).to(net_X).expand_as(net_X) for part in parts], dim=-1)


def one_factor_volatility(
    holdings_XN: Tensor, hedge_X: Tensor, beta_XN: Tensor, volatility_XN: Tensor, market_volatility_X: Tensor
) -> Tensor:
    """volatility_X of a portfolio whose assets move together by their betas alone."""
    factor_XN = beta_XN * market_volatility_X.unsqueeze(-1)
    specific_XN = torch.maximum(volatility_XN.square() - factor_XN.square(), 0.05 * volatility_XN.square())
    common_X = (holdings_XN * factor_XN).sum(-1) + hedge_X * market_volatility_X
    return (common_X.square() + (holdings_XN.square() * specific_XN).sum(-1)).clamp(min=1e-16).sqrt()


@dataclass(frozen=True)
class PortfolioState:
    """A portfolio at a close."""

    positions_XN: Tensor  # money, negative when short
    cash_X: Tensor  # the proceeds of short sales included; negative when borrowed
    hedge_X: Tensor  # money in the market proxy, negative when short
    signals_XN: Tensor  # of the last action
    hedged_X: Tensor  # the last action's hedge
    # what waits to be traded: the position ordered, as a share of wealth; NaN where nothing waits, None where nothing at all
    orders_XN: Tensor | None
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

    @property
    def waiting_XN(self) -> Tensor:
        """The orders that wait, as shares of wealth; NaN where none does."""
        return torch.full_like(self.positions_XN, torch.nan) if self.orders_XN is None else self.orders_XN

    @property
    def is_open_XN(self) -> Tensor:
        """bool, whether something is held or ordered."""
        held_XN = self.positions_XN != 0
        return held_XN if self.orders_XN is None else held_XN | ~self.orders_XN.isnan()

    def scalars(self, beta_XN: Tensor, volatility_X: Tensor) -> Tensor:
        """scalars_XG: the state in numbers of order one, as listed in `SCALARS`.

        Args:
            volatility_X: of the portfolio, daily, as expected.
        """
        wealth_X = self.wealth_X
        return scalars_of(
            self.holdings_XN,
            self.hedge_X / wealth_X,
            beta_XN,
            volatility_X,
            log_growth_X=torch.log(wealth_X / self.decided_wealth_X),
            cost_X=self.step_cost_X / wealth_X,
            turnover_X=self.step_turnover_X,
            drawdown_X=wealth_X / self.peak_X - 1,
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> "PortfolioState":
        """Apply a function of one tensor to each part; it must act on batch dimensions only."""
        return replace(self, **{name: function(part) for name, part in vars(self).items() if part is not None})


@dataclass(frozen=True)
class Ledger:
    """What happened between two closes, in money; turnover is one-way, as a share of wealth."""

    pnl_X: Tensor  # of positions and hedge, dividends included, and interest
    spread_X: Tensor  # commissions and half-spreads, the hedge's included
    impact_X: Tensor
    borrow_X: Tensor  # fees on what is held short
    turnover_X: Tensor

    @classmethod
    def of(cls, **parts_X: Tensor) -> "Ledger":
        """With nothing in the parts that are not given."""
        none_X = torch.zeros_like(next(iter(parts_X.values())))
        return cls(**{f.name: parts_X.get(f.name, none_X) for f in fields(cls)})

    @property
    def cost_X(self) -> Tensor:
        """All costs."""
        return self.spread_X + self.impact_X + self.borrow_X

    def __add__(self, other: "Ledger") -> "Ledger":
        return Ledger(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class PortfolioSimulator:
    """Moves portfolios through time. It holds no state and learns nothing. `frictions` prices trading by asset; without them
    every asset is of the most liquid tier and has no impact."""

    def __init__(self, config: PortfolioConfig):
        self.config = config
        self._hedge_cost = config.hedge_cost_bps * 1e-4
        self._flat = Frictions.of(config)

    def frictions(self, liquidity: Liquidity | None) -> Frictions:
        """The prices of trading assets of this liquidity."""
        return self._flat if liquidity is None else Frictions.of(self.config, liquidity)

    def start(
        self, shape: tuple[int, ...], *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> PortfolioState:
        """All in cash, wealth 1. `shape` is (*X, N)."""
        one_X = torch.ones(shape[:-1], dtype=dtype, device=device)
        zero_X, zero_XN = torch.zeros_like(one_X), torch.zeros(shape, dtype=dtype, device=device)
        return PortfolioState(zero_XN, one_X, zero_X, zero_XN, zero_X, None, one_X, one_X, zero_X, zero_X)

    def drift(
        self,
        state: PortfolioState,
        returns_XN: Tensor,
        market_return_X: Tensor,
        sessions: float = 1,
        frictions: Frictions | None = None,
    ) -> tuple[PortfolioState, Ledger]:
        """Let `sessions` sessions pass: positions earn their simple total returns, cash its interest, shorts pay the
        borrow fee.

        The proceeds of short sales, as much as it costs to buy back what was sold, earn the rebate; the other cash earns
        the cash rate, or pays that and the margin spread where it is borrowed.
        """
        config, prices = self.config, frictions or self._flat
        share = sessions / config.sessions_per_year
        hedge_short_X = state.hedge_X.clamp(max=0).neg()
        proceeds_X, borrow_X = hedge_short_X, (sessions * config.borrow_rate / config.sessions_per_year) * hedge_short_X
        if state.positions_XN.requires_grad or bool((state.positions_XN < 0).any()):
            short_XN = state.positions_XN.clamp(max=0).neg()
            proceeds_X = proceeds_X + short_XN.sum(-1)
            borrow_X = borrow_X + sessions * (prices.borrow * short_XN).sum(-1)
        own_X = state.cash_X - proceeds_X
        interest_X = share * (
            config.cash_rate * own_X + config.margin_spread * own_X.clamp(max=0) + config.short_rebate * proceeds_X
        )
        pnl_XN = state.positions_XN * returns_XN
        hedge_pnl_X = state.hedge_X * market_return_X
        pnl_X = pnl_XN.sum(-1) + hedge_pnl_X + interest_X
        positions_XN = pnl_XN.add_(state.positions_XN)
        hedge_X, cash_X = state.hedge_X + hedge_pnl_X, state.cash_X + interest_X - borrow_X
        moved = replace(
            state,
            positions_XN=positions_XN,
            hedge_X=hedge_X,
            cash_X=cash_X,
            peak_X=torch.maximum(state.peak_X, positions_XN.sum(-1) + cash_X + hedge_X),
            step_cost_X=state.step_cost_X + borrow_X,
        )
        return moved, Ledger.of(pnl_X=pnl_X, borrow_X=borrow_X)

    def trade(
        self,
        state: PortfolioState,
        action: PortfolioAction,
        beta_XN: Tensor,
        tradable_XN: Tensor | None = None,
        frictions: Frictions | None = None,
    ) -> tuple[PortfolioState, Ledger]:
        """Order the action's positions, and fill at today's close what can be traded; the other orders wait.

        Args:
            beta_XN: betas to the market proxy, for the size of the hedge.
            tradable_XN: bool; None means that all can be traded.
        """
        orders_XN = action.positions(self.config.allow_short, self.config.max_gross)
        # not torch.broadcast_shapes, whose first call imports a second's worth of modules
        _, orders_XN, signals_XN = torch.broadcast_tensors(state.positions_XN, orders_XN, action.signals_XN)
        ordered = replace(
            state,
            orders_XN=orders_XN,
            signals_XN=signals_XN,
            hedged_X=action.hedge_X if self.config.allow_hedge else torch.zeros_like(action.hedge_X),
        )
        if tradable_XN is None or bool(tradable_XN.all()):
            return self._execute(ordered, None, None, beta_XN, frictions)
        return self.fill(ordered, beta_XN, tradable_XN, frictions)

    def fill(
        self,
        state: PortfolioState,
        beta_XN: Tensor,
        tradable_XN: Tensor,
        frictions: Frictions | None = None,
        due_X: Tensor | None = None,
    ) -> tuple[PortfolioState, Ledger]:
        """Fill the waiting orders of the assets that can be traded.

        Orders are shares of the wealth that is left after the costs of the trade, so a full investment never borrows. What
        is not traded keeps its position, and the others share what gross exposure is left: an order that finds too little
        room is filled in part, and the rest of it lapses. A portfolio without wealth closes its positions.

        Args:
            due_X: bool, the portfolios that may trade at all, their hedge included; None means all.
        """
        moves_XN = ~state.waiting_XN.isnan() & tradable_XN
        if due_X is not None:
            moves_XN = moves_XN & due_X.unsqueeze(-1)
        return self._execute(state, moves_XN, due_X, beta_XN, frictions)

    def _execute(
        self,
        state: PortfolioState,
        moves_XN: Tensor | None,
        due_X: Tensor | None,
        beta_XN: Tensor,
        frictions: Frictions | None,
    ) -> tuple[PortfolioState, Ledger]:
        """Bring the assets that move to their orders; None means that all do."""
        prices = frictions or self._flat
        wealth_X, target_XN, stuck_XN, stuck_gross_X = state.wealth_X, state.waiting_XN, None, 0.0
        if moves_XN is not None:
            target_XN = torch.where(moves_XN, target_XN, 0.0)
            stuck_XN = torch.where(moves_XN, 0.0, state.positions_XN)
            stuck_gross_X = stuck_XN.abs().sum(-1)
        target_gross_X = target_XN.abs().sum(-1).clamp(min=1e-12)
        hedges = state.hedged_X.requires_grad or bool((state.hedged_X != 0).any() | (state.hedge_X != 0).any())

        positions_XN, hedge_X = state.positions_XN, state.hedge_X
        spread_X = impact_X = cost_X = traded_X = torch.zeros_like(wealth_X)
        for _ in range(prices.rounds(wealth_X.dtype)):
            left_X = (wealth_X - cost_X).clamp(min=0)
            room_X = (self.config.max_gross * left_X - stuck_gross_X).clamp(min=0) / target_gross_X
            positions_XN = target_XN * torch.minimum(left_X, room_X).unsqueeze(-1)
            if stuck_XN is not None:
                positions_XN = positions_XN.add_(stuck_XN)
            spread_X, impact_X, traded_X = prices.trading((positions_XN - state.positions_XN).abs_())
            if hedges:
                hedge_X = -state.hedged_X * (positions_XN * beta_XN).sum(-1).clamp(min=0)
                if due_X is not None:
                    hedge_X = torch.where(due_X, hedge_X, state.hedge_X)
                spread_X = spread_X + self._hedge_cost * (hedge_X - state.hedge_X).abs()
            before_X, cost_X = cost_X, spread_X + impact_X
            if torch.equal(before_X, cost_X):
                break

        turnover_X = traded_X / (2 * wealth_X.clamp(min=1e-12))
        traded = replace(
            state,
            positions_XN=positions_XN,
            hedge_X=hedge_X.expand_as(cost_X),
            cash_X=wealth_X - cost_X - positions_XN.sum(-1) - hedge_X,
            orders_XN=None if moves_XN is None else _waiting(state, moves_XN),
            step_cost_X=state.step_cost_X + cost_X,
            step_turnover_X=state.step_turnover_X + turnover_X,
        )
        return traded, Ledger.of(spread_X=spread_X, impact_X=impact_X, turnover_X=turnover_X)

    def delist(
        self, state: PortfolioState, delisted_XN: Tensor, delisting_return_XN: Tensor | float = 0.0
    ) -> tuple[PortfolioState, Ledger]:
        """Turn positions in assets that have ceased to trade into cash, at their last close times 1 + the policy's
        return; orders for them lapse."""
        gone_XN = torch.where(delisted_XN, state.positions_XN, 0.0)
        pnl_X = (gone_XN * delisting_return_XN).sum(-1)
        closed = replace(
            state,
            positions_XN=state.positions_XN - gone_XN,
            cash_X=state.cash_X + gone_XN.sum(-1) + pnl_X,
            orders_XN=None if state.orders_XN is None else torch.where(delisted_XN, torch.nan, state.orders_XN),
        )
        return closed, Ledger.of(pnl_X=pnl_X)

    def step(
        self,
        state: PortfolioState,
        action: PortfolioAction | None,
        returns_XTN: Tensor,
        market_returns_XT: Tensor,
        beta_XN: Tensor,
        tradable_XTN: Tensor,
        delisted_XTN: Tensor | None = None,
        delisting_return_XN: Tensor | float = 0.0,
        frictions: Frictions | None = None,
    ) -> tuple[PortfolioState, list[Ledger]]:
        """One decision step of T sessions: decided at a close, filled at the next close, held until the last one.

        Args:
            action: None for no new orders; those that wait go on waiting.
            tradable_XTN: bool; the order of an asset that cannot be traded at the fill waits for the first session at
                which it can, or for the next action, which replaces it.
            delisted_XTN: bool, True from the first session after an asset's last one on; None means that none ends.
            delisting_return_XN: what a holder gets beyond the last close, as a share of it.

        Returns:
            The state at the last close, and a ledger for each session.
        """
        zero_X = torch.zeros_like(state.wealth_X)
        state = replace(state, decided_wealth_X=state.wealth_X, step_cost_X=zero_X, step_turnover_X=zero_X)
        ledgers = []
        for session in range(returns_XTN.shape[-2]):
            returns_XN, market_X = returns_XTN[..., session, :], market_returns_XT[..., session]
            state, ledger = self.drift(state, returns_XN, market_X, frictions=frictions)
            if delisted_XTN is not None and bool((delisted_XTN[..., session, :] & state.is_open_XN).any()):
                state, closing = self.delist(state, delisted_XTN[..., session, :], delisting_return_XN)
                ledger = ledger + closing
            tradable_XN = tradable_XTN[..., session, :]
            if session == 0 and action is not None:
                state, filled = self.trade(state, action, beta_XN, tradable_XN, frictions)
                ledger = ledger + filled
            elif state.orders_XN is not None:
                due_X = (~state.orders_XN.isnan() & tradable_XN).any(-1)
                if bool(due_X.any()):
                    state, filled = self.fill(state, beta_XN, tradable_XN, frictions, due_X)
                    ledger = ledger + filled
            ledgers.append(ledger)
        return state, ledgers


def _waiting(state: PortfolioState, moved_XN: Tensor) -> Tensor | None:
    """The orders that still wait after some have moved; an order to hold nothing of what is not held is done already."""
    orders_XN = torch.where(
        moved_XN | ((state.waiting_XN == 0) & (state.positions_XN == 0)), torch.nan, state.waiting_XN
    )
    return None if bool(orders_XN.isnan().all()) else orders_XN
