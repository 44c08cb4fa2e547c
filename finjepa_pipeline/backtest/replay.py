"""The decisions of a walk once more, under other costs or with parts of the action switched off: what they would have
earned, without asking the strategies again.

Shapes: K strategies, D decisions, T sessions, R assets of the roster.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_pipeline.backtest.engine import Court, Walk

COST_GRID = (0.0, 5.0, 10.0, 25.0, 50.0)  # one-way basis points; spreads by tier and impact come on top
PARTS = ("weights", "signals", "hedge", "net")


@dataclass(frozen=True)
class Replay:
    """Daily returns of K strategies: gross before costs, net after them."""

    gross_TK: np.ndarray
    net_TK: np.ndarray


def replay(
    walks: Sequence[Walk], court: Court, costs: PortfolioConfig, *, signals: bool = True, hedge: bool = True
) -> Replay:
    """Trade recorded decisions, all strategies at once.

    Args:
        signals: False to be long whatever has a budget; hedge: False never to hedge.
    """
    simulator = PortfolioSimulator(costs)
    state = simulator.start((len(walks), len(court.roster_R)))
    weights_DKR, signals_DKR = (
        torch.from_numpy(np.stack([getattr(walk, name) for walk in walks], axis=1)).double()
        for name in ("weights_KR", "signals_KR")
    )
    hedges_DK = torch.from_numpy(np.stack([walk.hedges_K for walk in walks], axis=1)).double()
    ordered_DK = torch.from_numpy(np.stack([walk.ordered_K for walk in walks], axis=1))
    if not signals:
        signals_DKR = (weights_DKR > 0).double()
    if not hedge:
        hedges_DK = torch.zeros_like(hedges_DK)
    gross, net = [], []
    for d, step in enumerate(court.steps):
        action = PortfolioAction(weights_DKR[d], signals_DKR[d], hedges_DK[d])
        ordered_K = ordered_DK[d]
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
    return {f"cost_{bps:g}": replay(walks, court, replace(court.costs, cost_bps=bps)).net_TK for bps in COST_GRID}


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
    return {
        "weights": replay(walks, court, free, signals=False, hedge=False).net_TK,
        "signals": replay(walks, court, free, hedge=False).net_TK,
        "hedge": replay(walks, court, free).net_TK,
        "net": np.column_stack([walk.net_T for walk in walks]),
    }
