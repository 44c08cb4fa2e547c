"""The decisions of a walk once more, under other costs or with parts of the action switched off: what they would have
earned, without asking the strategies again.

Shapes: K strategies, D decisions, T sessions, R assets of the roster.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.portfolio import Frictions, Liquidity, PortfolioSimulator
from finjepa_pipeline.backtest.engine import Court, Walk

COST_GRID = (0.0, 5.0, 10.0, 25.0, 50.0)  # one-way basis points; spreads by tier and impact come on top
PARTS = ("weights", "signals", "hedge", "net")


@dataclass(frozen=True)
class Replay:
    """Daily returns of K strategies: gross before costs, net after them."""

    gross_TK: np.ndarray
    net_TK: np.ndarray


@dataclass(frozen=True)
class Orders:
    """What K strategies decided; the mechanics trade all of them at once."""

    weights_DKR: torch.Tensor
    signals_DKR: torch.Tensor
    hedges_DK: torch.Tensor
    ordered_DK: torch.Tensor

    @classmethod
    def of(cls, walks: Sequence[Walk], *, signals: bool = True, hedge: bool = True) -> "Orders":
        """
        Args:
            signals: False to be long whatever has a budget; hedge: False never to hedge.
        """
        weights_DKR, signals_DKR, hedges_DK, ordered_DK = (
            torch.from_numpy(np.stack([getattr(walk, name) for walk in walks], axis=1))
            for name in ("weights_KR", "signals_KR", "hedges_K", "ordered_K")
        )
        weights_DKR, hedges_DK = weights_DKR.double(), hedges_DK.double()
        signals_DKR = signals_DKR.double() if signals else (weights_DKR > 0).double()
        return cls(weights_DKR, signals_DKR, hedges_DK if hedge else torch.zeros_like(hedges_DK), ordered_DK)

    @classmethod
    def side_by_side(cls, parts: Sequence["Orders"]) -> "Orders":
        """Of all, in a row."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts], dim=1) for f in fields(cls)))


class GradedSimulator(PortfolioSimulator):
    """Portfolios side by side that pay different commissions: `bps_K`, of each in basis points."""

    def __init__(self, costs: PortfolioConfig, bps_K: np.ndarray):
        dearest = float(bps_K.max())
        super().__init__(
            replace(costs, cost_bps=dearest)
        )  # so that the fixed point of wealth after costs is exact for all
        self._less_K1 = torch.from_numpy(1e-4 * (bps_K - dearest))[:, None]

    def frictions(self, liquidity: Liquidity | None) -> Frictions:
        prices = super().frictions(liquidity)
        return replace(prices, spread=prices.spread + self._less_K1)


def replay(walks: Sequence[Walk], court: Court, costs: PortfolioConfig) -> Replay:
    """Trade recorded decisions under other costs."""
    return _trade(Orders.of(walks), court, PortfolioSimulator(costs))


def _trade(orders: Orders, court: Court, simulator: PortfolioSimulator) -> Replay:
    costs = simulator.config
    state = simulator.start(tuple(orders.weights_DKR.shape[1:]))
    gross, net = [], []
    for d, step in enumerate(court.steps):
        action = PortfolioAction(orders.weights_DKR[d], orders.signals_DKR[d], orders.hedges_DK[d])
        ordered_K = orders.ordered_DK[d]
        state = replace(  # orders are left in the book, for the mechanics to fill as they would fill waiting ones
            state,
            orders_XN=torch.where(
                ordered_K[:, None], action.positions(costs.allow_short, costs.max_gross), state.waiting_XN
            ),
            signals_XN=torch.where(ordered_K[:, None], action.signals_XN, state.signals_XN),
            hedged_X=torch.where(ordered_K, action.hedge_X * costs.allow_hedge, state.hedged_X),
        )
        wealth_K = state.wealth_X
        state, ledgers = step.advance(simulator, state, None)
        for ledger in ledgers:
            gross.append(ledger.pnl_X / wealth_K)
            net.append((ledger.pnl_X - ledger.cost_X) / wealth_K)
            wealth_K = wealth_K + ledger.pnl_X - ledger.cost_X
    return Replay(torch.stack(gross).numpy(), torch.stack(net).numpy())


def cost_grid(walks: Sequence[Walk], court: Court) -> dict[str, np.ndarray]:
    """Net returns net_TK by `cost_<bps>`: commission and half-spread of the most liquid tier, and the hedge's, at each level."""
    orders = Orders.side_by_side([Orders.of(walks)] * len(COST_GRID))
    simulator = GradedSimulator(court.costs, np.repeat(np.array(COST_GRID), len(walks)))
    levels = np.split(_trade(orders, court, simulator).net_TK, len(COST_GRID), axis=1)
    return {f"cost_{bps:g}": net_TK for bps, net_TK in zip(COST_GRID, levels, strict=True)}


def attribution(walks: Sequence[Walk], court: Court) -> dict[str, np.ndarray]:
    """Returns_TK with one part of the action after the other switched on, without costs, and then all with costs.

    `weights`: long whatever has a budget; `signals`: as they were decided; `hedge`: the hedge too; `net`: after costs. The
    effect of a part is the difference to the part before, that of the weights the difference to 1/N.
    """
    free = replace(
        court.costs,
        cost_bps=0.0,
        hedge_cost_bps=0.0,
        tier_spread_bps=(0.0,) * len(court.costs.tier_spread_bps),
        impact=0.0,
        borrow_rate=0.0,
        tier_borrow_rate=(0.0,) * len(court.costs.tier_borrow_rate),
        margin_spread=0.0,
    )
    parts = [Orders.of(walks, signals=False, hedge=False), Orders.of(walks, hedge=False), Orders.of(walks)]
    earned = np.split(_trade(Orders.side_by_side(parts), court, PortfolioSimulator(free)).net_TK, len(parts), axis=1)
    return dict(zip(PARTS, [*earned, np.column_stack([walk.net_T for walk in walks])], strict=True))
