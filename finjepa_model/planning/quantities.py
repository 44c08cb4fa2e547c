"""The quantities of `planning.utility`, computed from a roll-out; each only when a utility speaks of it.

Shapes: B decision dates, C candidates, H decision steps, N assets, K models of an ensemble, D latent width.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.rollout import PlanningWorld, Rollout

_TAIL = 0.05
TAIL_QUANTILE = 1.6448536269514722  # of the standard normal distribution at 1 - _TAIL
_TAIL_MEAN = math.exp(-(TAIL_QUANTILE**2) / 2) / math.sqrt(2 * math.pi) / _TAIL  # its mean beyond that


def quantities(world: PlanningWorld, rollout: Rollout, names: Iterable[str]) -> dict[str, Tensor]:
    """The named quantities of every candidate and step, each value_BCH.

    Raises:
        FinJEPAError: for one that this world has no means to know: a disagreement without an ensemble, a distance
            without a goal.
    """
    named = sorted(names)
    goals = [name for name in named if name.startswith("goal(")]
    values = {name: _OF[name.partition("(")[0]](world, rollout) for name in named if name not in goals}
    if goals:
        latents_BCHD = _latents(world, rollout)
        values |= {name: _distance(latents_BCHD, world.goals[name]) for name in goals}
    return values


def variance(world: PlanningWorld, rollout: Rollout) -> Tensor:
    """Variance of each step's simple return under the one-factor model: variance_BCH."""
    moments = world.moments
    market_BCH = beta(world, rollout).square() * moments.market_variance_BH.unsqueeze(1)
    specific_BCH = (rollout.holdings_BCHN.square() * moments.specific_variance_BHN.unsqueeze(1)).sum(-1)
    return market_BCH + specific_BCH


def beta(world: PlanningWorld, rollout: Rollout) -> Tensor:
    return (rollout.holdings_BCHN * world.moments.beta_BN[:, None, None]).sum(-1) + rollout.hedge_BCH


def volatility(world: PlanningWorld, rollout: Rollout) -> Tensor:
    # the root's slope is infinite at 0, where cash is
    return variance(world, rollout).clamp(min=1e-16).sqrt()


def _cvar(world: PlanningWorld, rollout: Rollout) -> Tensor:
    return _TAIL_MEAN * volatility(world, rollout) - torch.expm1(rollout.growth_BCH)


def _drawdown(world: PlanningWorld, rollout: Rollout) -> Tensor:
    """On the path that is worse than 95 % of paths at each step, from the highest wealth before the plan."""
    deviation_BCH = variance(world, rollout).cumsum(-1).clamp(min=1e-16).sqrt()
    path_BCH = torch.exp(rollout.growth_BCH.cumsum(-1) - TAIL_QUANTILE * deviation_BCH)
    now_B11 = (world.state.wealth_X / world.state.peak_X)[:, None, None]
    return (1 - now_B11 * path_BCH).clamp(min=0)


def _disagreement(world: PlanningWorld, rollout: Rollout) -> Tensor:
    means_KBHN = world.moments.member_means_KBHN
    if means_KBHN is None:
        raise FinJEPAError("disagreement is that of an ensemble; name other checkpoints, as in disagreement('ID')")
    returns_KBCH = torch.einsum("bchn,kbhn->kbch", rollout.holdings_BCHN, means_KBHN)
    return returns_KBCH.var(0, correction=0).clamp(min=1e-16).sqrt()


def _goal_distance(world: PlanningWorld, rollout: Rollout) -> Tensor:
    if world.goal_BD is None:
        raise FinJEPAError("a utility with goal_distance needs a goal; see finjepa_model.planning.goals")
    return _distance(_latents(world, rollout), world.goal_BD)


def _latents(world: PlanningWorld, rollout: Rollout) -> Tensor:
    return world.imagination.portfolio_path(world.state, rollout.held_BCHN, rollout.actions)


def _distance(latents_BCHD: Tensor, goal_BD: Tensor) -> Tensor:
    return (latents_BCHD - goal_BD[:, None, None]).square().mean(-1)


def _final_goal_distance(world: PlanningWorld, rollout: Rollout) -> Tensor:
    distance_BCH = _goal_distance(world, rollout)
    return torch.cat([torch.zeros_like(distance_BCH[..., :-1]), distance_BCH[..., -1:]], dim=-1)


_OF: dict[str, Callable[[PlanningWorld, Rollout], Tensor]] = {
    "log_growth": lambda world, rollout: rollout.growth_BCH,
    "variance": variance,
    "volatility": volatility,
    "cvar": _cvar,
    "drawdown": _drawdown,
    "cost": lambda world, rollout: rollout.cost_BCH,
    "turnover": lambda world, rollout: rollout.turnover_BCH,
    "gross": lambda world, rollout: rollout.holdings_BCHN.abs().sum(-1),
    "net": lambda world, rollout: rollout.holdings_BCHN.sum(-1),
    "short": lambda world, rollout: rollout.holdings_BCHN.clamp(max=0).sum(-1).neg(),
    "cash": lambda world, rollout: 1 - rollout.holdings_BCHN.sum(-1),
    "beta": beta,
    "concentration": lambda world, rollout: rollout.holdings_BCHN.square().sum(-1),
    "hedge": lambda world, rollout: rollout.actions.hedge_X,
    "disagreement": _disagreement,
    "goal_distance": _goal_distance,
    "final_goal_distance": _final_goal_distance,
}
