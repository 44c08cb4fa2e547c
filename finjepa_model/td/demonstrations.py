"""Plans that the policy imitates: what a planner that looks several steps ahead does, for random utilities and portfolios.

Behaviour cloning beside the actor's own loss, as in TD-JEPA on data of low coverage (2510.00739).

Shapes: Y portfolios, Z task features, R next states.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.planning.objective import Objective
from finjepa_model.planning.plan import ActionSpace
from finjepa_model.planning.search import GradientPlanner
from finjepa_model.planning.utility import Utility, parse_utility
from finjepa_model.td.branch import TDBranch, infer_task
from finjepa_model.td.networks import PolicyState, PortfolioActor

PLAN_STEPS, PORTFOLIOS = 8, 256
_PLANNER = GradientPlanner(starts=1, iterations=4)  # from the solution of the qp
_REMEMBERED = 32  # demonstrations that a step of training chooses from
_CHOSEN = 4  # by a step
# Prices of a utility in log_growth: lowest, highest, and how often it has them. Log-uniform.
_PRICES = {
    "variance": (0.3, 30.0, 0.9),
    "turnover": (3e-4, 1e-2, 0.3),
    "above(drawdown, {limit:.3f})": (0.05, 0.6, 0.25),
    "hedge": (3e-4, 3e-3, 0.2),
}
_DEEPEST = (0.03, 0.2)  # limits of drawdowns


class Transitions(Protocol):
    """What tasks are inferred on."""

    @property
    def after(self) -> PolicyState: ...
    @property
    def quantities(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Demonstration:
    """What was done in Y portfolios for a utility."""

    state: PolicyState
    utility: Utility
    action: PortfolioAction


def random_utility(rules: PortfolioConfig) -> Utility:
    """Growth, less a few risks and costs at random prices."""
    terms = ["log_growth"]
    for name, (low, high, share) in _PRICES.items():
        wanted, position, depth = torch.rand(3).tolist()
        if wanted < share and (name != "hedge" or rules.allow_hedge):
            limit = _DEEPEST[0] + depth * (_DEEPEST[1] - _DEEPEST[0])
            price = math.exp(math.log(low) + position * math.log(high / low))
            terms.append(f"{price:.6f}*{name.format(limit=limit)}")
    return parse_utility(" - ".join(terms))


def demonstrate(state: PolicyState) -> Demonstration:
    """Of a state whose world looks `PLAN_STEPS` ahead; what is random in it comes from torch's global generator."""
    rules = state.world.simulator.config
    utility = random_utility(rules)
    space = ActionSpace.from_config(rules, state.present_YN, PLAN_STEPS)
    plan = _PLANNER.plan(Objective(state.world, utility), space, None, torch.Generator().manual_seed(0))
    return Demonstration(state, utility, plan.action)


class Demonstrations:
    """The latest ones, by number.

    Args:
        make: the demonstration of a number, a function of that alone, so that an interrupted training can go on.
    """

    def __init__(self, make: Callable[[int], Demonstration]):
        self._make = make
        self._made: dict[int, Demonstration] = {}

    def error(self, newest: int, transitions: Transitions, branch: TDBranch) -> Tensor:
        """How far the policy is from some of the latest, their tasks inferred on transitions."""
        first = max(newest + 1 - _REMEMBERED, 0)
        numbers = (first + (torch.rand(_CHOSEN) * (newest + 1 - first)).long()).tolist()
        self._made = {
            k: self._made[k] if k in self._made else self._make(k)
            for k in sorted({*numbers, *self._made})
            if k >= first
        }
        return torch.stack([distance(branch, self._made[number], transitions) for number in numbers]).mean()


def distance(branch: TDBranch, one: Demonstration, transitions: Transitions) -> Tensor:
    """How far the policy is from a demonstration, whose task is inferred on transitions (`PortfolioActor.cloning_error`)."""
    algorithm = branch.algorithm
    with torch.no_grad():
        features_RZ = algorithm.targets["task_encoder"](transitions.after)
    direction_Z = infer_task(one.utility, features_RZ, transitions.quantities).direction_Z
    task_YZ = direction_Z.expand(len(one.state.present_YN), -1)
    return cast(PortfolioActor, algorithm.actor).cloning_error(one.state, task_YZ, one.action)
