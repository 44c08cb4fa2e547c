"""Cost functions of candidates: weighted sums of terms over one roll-out.

A goal is a state of the portfolio, never a path of prices: nothing that is traded can make a price come true.

Shapes: B decision dates, C candidates, H decision steps, N assets, D latent width, G portfolio scalars.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.planning.moments import Imagination, Moments
from finjepa_model.planning.rollout import PlanningWorld, Rollout
from finjepa_model.portfolio import PortfolioSimulator


class Term(Protocol):
    """One part of a cost."""

    @property
    def name(self) -> str: ...
    def __call__(self, world: PlanningWorld, rollout: Rollout) -> Tensor:
        """Lower is better: cost_BC."""
        ...


@dataclass(frozen=True)
class Objective:
    """A cost function of candidates (`planning.plan.Cost`): the weighted sum of its terms."""

    world: PlanningWorld
    terms: Sequence[tuple[float, Term]]

    def __call__(self, actions: PortfolioAction) -> Tensor:
        rollout = self.world.roll(actions)
        return torch.stack([weight * term(self.world, rollout) for weight, term in self.terms]).sum(0)

    def by_term(self, path: PortfolioAction) -> dict[str, Tensor]:
        """The weighted cost_B of each term for one path_BH."""
        rollout = self.world.roll(path.map(lambda x: x.unsqueeze(1)))
        return {term.name: weight * term(self.world, rollout)[:, 0] for weight, term in self.terms}


def discounted(value_BCH: Tensor, discount: float) -> Tensor:
    """sum_h discount^h value_h: value_BC."""
    powers_H = discount ** torch.arange(value_BCH.shape[-1], dtype=value_BCH.dtype, device=value_BCH.device)
    return (value_BCH * powers_H).sum(-1)


@dataclass(frozen=True)
class NegativeLogGrowth:
    """Minus the expected log growth of wealth after exact costs."""

    discount: float = 1.0
    name: str = "growth"

    def __call__(self, world: PlanningWorld, rollout: Rollout) -> Tensor:
        return -discounted(rollout.growth_BCH, self.discount)


@dataclass(frozen=True)
class Variance:
    """Half the variance of each step's return: with weight 1 beside growth this is Kelly's criterion."""

    discount: float = 1.0
    name: str = "variance"

    def __call__(self, world: PlanningWorld, rollout: Rollout) -> Tensor:
        return discounted(rollout.variance_BCH, self.discount) / 2


@dataclass(frozen=True)
class Turnover:
    """One-way turnover beyond what it costs: the price of trading on a forecast that is noise in part."""

    discount: float = 1.0
    name: str = "turnover"

    def __call__(self, world: PlanningWorld, rollout: Rollout) -> Tensor:
        return discounted(rollout.turnover_BCH, self.discount)


@dataclass(frozen=True)
class GoalDistance:
    """Mean squared distance of the portfolio latent to a goal, at the last step or summed over steps.

    `sum` is what EB-JEPA measured to be better (97 against 89 % on Two Rooms).
    """

    goal_BD: Tensor
    steps: Literal["last", "sum"] = "sum"
    name: str = "goal"

    def __call__(self, world: PlanningWorld, rollout: Rollout) -> Tensor:
        latents_BCHD = world.imagination.portfolio_path(world.state, rollout.held_BCHN, rollout.actions)
        distance_BCH = (latents_BCHD - self.goal_BD[:, None, None]).square().mean(-1)
        return distance_BCH[..., -1] if self.steps == "last" else distance_BCH.sum(-1)


@dataclass(frozen=True, kw_only=True)
class CumulativeConfig:
    risk_aversion: float = 5.0
    discount: float = 1.0
    turnover_price: float = 0.0  # log growth given up per unit of one-way turnover, beyond the exact costs


def cumulative_cost(world: PlanningWorld, config: CumulativeConfig | None = None) -> Objective:
    """Minus predicted log growth after exact costs, plus risk_aversion / 2 times the variance, summed over steps."""
    config = config or CumulativeConfig()
    return Objective(
        world,
        (
            (1.0, NegativeLogGrowth(config.discount)),
            (config.risk_aversion, Variance(config.discount)),
            (config.turnover_price, Turnover(config.discount)),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class GoalConfig:
    risk_aversion: float = 5.0  # of the holdings that are the goal
    steps: Literal["last", "sum"] = "sum"


def goal_cost(world: PlanningWorld, config: GoalConfig | None = None, goal_BD: Tensor | None = None) -> Objective:
    """L2 to the latent of the best portfolio under the imagined moments.

    Args:
        goal_BD: the goal where it is known already, as when many dates were prepared at once; see `goal_latent`.
    """
    config = config or GoalConfig()
    if goal_BD is None:
        goal_BD = goal_latent(world.imagination, world.simulator, world.sessions, config)
    return Objective(world, ((1.0, GoalDistance(goal_BD, config.steps)),))


@torch.no_grad()
def goal_latent(
    imagination: Imagination, simulator: PortfolioSimulator, sessions: int, config: GoalConfig | None = None
) -> Tensor:
    """The goal: latent of the mean-variance optimal holdings as they would stand with no costs paid and no drawdown.

    It depends on the market alone, not on what is held, so that it can be made for many dates at once.

    Returns:
        goal_BD.
    """
    config = config or GoalConfig()
    moments = Moments.of(imagination)
    rules = simulator.config
    holdings_BN = moments.best_holdings(config.risk_aversion, rules.max_weight)
    hedge_B = moments.hedge_pays(holdings_BN, config.risk_aversion) & rules.allow_hedge
    signals_BN = (holdings_BN > 0).to(holdings_BN.dtype)
    action = PortfolioAction(holdings_BN, signals_BN, hedge_B.to(holdings_BN.dtype))
    free = PortfolioSimulator(replace(rules, cost_bps=0.0, hedge_cost_bps=0.0, borrow_rate=0.0))
    start = free.start(tuple(holdings_BN.shape), dtype=holdings_BN.dtype, device=holdings_BN.device)
    state, _ = free.trade(start, action, moments.beta_BN, torch.ones_like(moments.present_BN))
    state, _ = free.drift(state, moments.mean_BHN[:, 0], moments.market_mean_BH[:, 0], sessions)
    state = replace(state, peak_X=state.wealth_X, step_turnover_X=torch.zeros_like(state.wealth_X))
    scalars_BG = state.scalars(moments.beta_BN)
    goal_BCD = imagination.encode_portfolio(
        state.holdings_XN.unsqueeze(1), signals_BN.unsqueeze(1), scalars_BG.unsqueeze(1)
    )
    return goal_BCD[:, 0]
