"""Cost functions of candidates: rolled through the exact portfolio mechanics along the imagined market, and a utility summed
over the steps, its limits first.

Shapes: B decision dates, C candidates, H decision steps, N assets, D latent width, K models of an ensemble.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.imagination import ImaginedMarket, Moments, Rollout
from finjepa_model.planning.plan import Account
from finjepa_model.planning.utility import Utility, parse_utility
from finjepa_model.portfolio import Frictions, Liquidity, PortfolioSimulator, PortfolioState

# Mean-variance with a risk aversion of 5, costs exact. And the goal, L2 in latent space, summed over steps, which EB-JEPA
# measured to be better than the last step alone (97 against 89 % on Two Rooms).
CUMULATIVE = parse_utility("log_growth - 2.5*variance")
GOAL = parse_utility("-goal_distance")
GOAL_DISTANCES = frozenset({"goal_distance", "final_goal_distance"})  # what needs a goal


@dataclass(frozen=True)
class PlanningWorld:
    """Everything that a cost function may look at: the imagined market, the rules of trading, and what is held now."""

    imagination: ImaginedMarket
    simulator: PortfolioSimulator
    state: PortfolioState  # of the B portfolios now
    sessions: int  # of a decision step, for interest and borrow fees
    moments: Moments
    frictions: Frictions  # what trading each asset costs, [B, 1, N]
    tradable_BN: Tensor | None = None  # who can be traded in the first step; None means all
    goal_BD: Tensor | None = None  # portfolio latent of the goal; None where no cost needs one
    goals: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # goal_BD of each goal that a utility names, as it is written

    @classmethod
    def of(
        cls,
        imagination: ImaginedMarket,
        simulator: PortfolioSimulator,
        state: PortfolioState,
        sessions: int,
        tradable_BN: Tensor | None = None,
        liquidity: Liquidity | None = None,
        goal_BD: Tensor | None = None,
        goals: Mapping[str, Tensor] | None = None,
    ) -> "PlanningWorld":
        """In the precision and on the device of the imagination.

        Args:
            liquidity: of the assets, [B, N]; None where it is unknown, so that only the flat costs are charged.
        """
        moments = Moments.of(imagination)
        prices = simulator.frictions(liquidity).map(lambda x: x.to(moments.mean_BHN).unsqueeze(1))
        state = state.map(lambda x: x.to(moments.mean_BHN))
        return cls(imagination, simulator, state, sessions, moments, prices, tradable_BN, goal_BD, goals or {})

    def roll(self, actions: PortfolioAction, trades: bool = True) -> Rollout:
        """Trade and drift at the expected returns; a loop over steps, never over candidates.

        The fill is at once, while real ones come a session later; over a step the difference is one session's drift.

        Args:
            trades: False for no orders at all: what is held drifts, and the actions only describe it.
        """
        moments, state = self.moments, self.state.map(lambda x: x.unsqueeze(1))
        beta_B1N, steps = moments.beta_BN.unsqueeze(1), []
        for step in range(actions.hedge_X.shape[-1]):
            before_X = state.wealth_X
            zero_X = torch.zeros_like(before_X)
            state = replace(state, decided_wealth_X=before_X, step_cost_X=zero_X, step_turnover_X=zero_X)
            held_XN = state.holdings_XN
            tradable_B1N = self.tradable_BN.unsqueeze(1) if step == 0 and self.tradable_BN is not None else None
            now = actions.map(lambda x, step=step: x[:, :, step])
            if trades:
                state, _ = self.simulator.trade(state, now, beta_B1N, tradable_B1N, self.frictions)
            holdings_XN, hedge_X = state.positions_XN / before_X.unsqueeze(-1), state.hedge_X / before_X
            mean_B1N, market_mean_B1 = moments.mean_BHN[:, step, None], moments.market_mean_BH[:, step, None]
            state, _ = self.simulator.drift(state, mean_B1N, market_mean_B1, self.sessions, self.frictions)
            growth_X = torch.log(state.wealth_X / before_X)
            held_XN = held_XN.expand_as(holdings_XN)
            steps.append((held_XN, holdings_XN, hedge_X, growth_X, state.step_cost_X / before_X, state.step_turnover_X))
        return Rollout(actions, *(torch.stack(parts, 2) for parts in zip(*steps, strict=True)))


def quantities(world: PlanningWorld, rollout: Rollout, names: Iterable[str]) -> dict[str, Tensor]:
    """The named quantities of `planning.utility` of every candidate and step, each value_BCH.

    Raises:
        FinJEPAError: for one that cannot be computed here: a disagreement without an ensemble, a distance
            without a goal.
    """
    named = sorted(names)
    goals = [name for name in named if name.startswith("goal(")]
    values = {name: _OF[name.partition("(")[0]](world, rollout) for name in named if name not in goals}
    if goals:
        latents_BCHD = _latents(world, rollout)
        values |= {name: _distance(world, latents_BCHD, world.goals[name]) for name in goals}
    return values


def _variance(world: PlanningWorld, rollout: Rollout) -> Tensor:
    """Of each step's simple return."""
    steps = range(rollout.hedge_BCH.shape[-1])
    parts = [world.moments.variance(rollout.holdings_BCHN[:, :, h], rollout.hedge_BCH[..., h], h) for h in steps]
    return torch.stack(parts, dim=-1)


def _volatility(world: PlanningWorld, rollout: Rollout) -> Tensor:
    # the root's slope is infinite at 0, where cash is
    return _variance(world, rollout).clamp(min=1e-16).sqrt()


_TAIL = 0.05
_TAIL_QUANTILE = 1.6448536269514722  # of the standard normal distribution at 1 - _TAIL
_TAIL_MEAN = math.exp(-(_TAIL_QUANTILE**2) / 2) / math.sqrt(2 * math.pi) / _TAIL  # its mean beyond that


def _cvar(world: PlanningWorld, rollout: Rollout) -> Tensor:
    return _TAIL_MEAN * _volatility(world, rollout) - torch.expm1(rollout.growth_BCH)


def _drawdown(world: PlanningWorld, rollout: Rollout) -> Tensor:
    """On the path that is worse than 95 % of paths at each step, from the highest wealth before the plan."""
    deviation_BCH = _variance(world, rollout).cumsum(-1).clamp(min=1e-16).sqrt()
    path_BCH = torch.exp(rollout.growth_BCH.cumsum(-1) - _TAIL_QUANTILE * deviation_BCH)
    now_B11 = (world.state.wealth_X / world.state.peak_X)[:, None, None]
    return (1 - now_B11 * path_BCH).clamp(min=0)


def _beta(world: PlanningWorld, rollout: Rollout) -> Tensor:
    return (rollout.holdings_BCHN * world.moments.beta_BN[:, None, None]).sum(-1) + rollout.hedge_BCH


def _disagreement(world: PlanningWorld, rollout: Rollout) -> Tensor:
    means_KBHN = world.moments.member_means_KBHN
    if means_KBHN is None:
        raise FinJEPAError("disagreement is that of an ensemble; name other checkpoints, as in disagreement('ID')")
    returns_KBCH = torch.einsum("bchn,kbhn->kbch", rollout.holdings_BCHN, means_KBHN)
    return returns_KBCH.var(0, correction=0).clamp(min=1e-16).sqrt()


def _goal_distance(world: PlanningWorld, rollout: Rollout) -> Tensor:
    if world.goal_BD is None:
        raise FinJEPAError("a utility with goal_distance needs a goal; see finjepa_model.planning.goals")
    return _distance(world, _latents(world, rollout), world.goal_BD)


def _final_goal_distance(world: PlanningWorld, rollout: Rollout) -> Tensor:
    distance_BCH = _goal_distance(world, rollout)
    return torch.cat([torch.zeros_like(distance_BCH[..., :-1]), distance_BCH[..., -1:]], dim=-1)


def _latents(world: PlanningWorld, rollout: Rollout) -> Tensor:
    return world.imagination.portfolio_path(world.state, rollout)


def _distance(world: PlanningWorld, latents_BCHD: Tensor, goal_BD: Tensor) -> Tensor:
    return world.imagination.position(latents_BCHD - goal_BD[:, None, None]).square().mean(-1)


_OF: dict[str, Callable[[PlanningWorld, Rollout], Tensor]] = {
    "log_growth": lambda world, rollout: rollout.growth_BCH,
    "variance": _variance,
    "volatility": _volatility,
    "cvar": _cvar,
    "drawdown": _drawdown,
    "cost": lambda world, rollout: rollout.cost_BCH,
    "turnover": lambda world, rollout: rollout.turnover_BCH,
    "gross": lambda world, rollout: rollout.holdings_BCHN.abs().sum(-1),
    "net": lambda world, rollout: rollout.holdings_BCHN.sum(-1),
    "short": lambda world, rollout: rollout.holdings_BCHN.clamp(max=0).sum(-1).neg(),
    "cash": lambda world, rollout: 1 - rollout.holdings_BCHN.sum(-1),
    "beta": _beta,
    "concentration": lambda world, rollout: rollout.holdings_BCHN.square().sum(-1),
    "hedge": lambda world, rollout: rollout.actions.hedge_X,
    "disagreement": _disagreement,
    "goal_distance": _goal_distance,
    "final_goal_distance": _final_goal_distance,
}

_BROKEN = 1e3  # cost of breaking a limit at all, and per unit of excess: more than any utility
_TOLERANCE = 1e-5  # of a limit, for rounding


@dataclass(frozen=True)
class Objective:
    """A cost function of candidates (`planning.plan.Cost`): minus the utility, summed over steps.

    Any candidate that keeps the limits costs less than any that breaks one, and of those the one that breaks them least
    costs least.
    """

    world: PlanningWorld
    utility: Utility = CUMULATIVE

    def __call__(self, actions: PortfolioAction) -> Tensor:
        """cost_BC."""
        return torch.stack(list(self._terms(self.world.roll(actions)).values())).sum(0)

    def account(self, path: PortfolioAction) -> Account:
        """What one path_BH costs, by term, and where it leads by the model's own account."""
        return self._account(self.world.roll(path.map(lambda x: x.unsqueeze(1))))

    def account_of_holding(self, steps: int) -> Account:
        """The same of no orders for so many decision steps."""
        state = self.world.state
        kept = PortfolioAction(state.holdings_XN.abs(), state.holdings_XN.sign(), (state.hedge_X < 0).to(state.hedge_X))
        actions = kept.map(lambda x: x.unsqueeze(1).unsqueeze(1).expand(-1, -1, steps, *x.shape[1:]))
        return self._account(self.world.roll(actions, trades=False))

    def _account(self, rollout: Rollout) -> Account:
        terms = {name: cost_BC[:, 0] for name, cost_BC in self._terms(rollout).items()}
        return Account(terms, rollout.growth_BCH[:, 0], _variance(self.world, rollout)[:, 0].sqrt())

    def _terms(self, rollout: Rollout) -> dict[str, Tensor]:
        """The cost_BC of each addend and limit."""
        values = quantities(self.world, rollout, self.utility.names)
        terms = {name: -value_BCH.sum(-1) for name, value_BCH in self.utility.by_term(values).items()}
        for name, excess_BCH in self.utility.excess(values).items():
            broken_BCH = (excess_BCH > _TOLERANCE).to(excess_BCH.dtype)
            terms[name] = _BROKEN * (excess_BCH + broken_BCH).sum(-1)
        return terms
