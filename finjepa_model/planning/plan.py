"""A finished plan, and what a planner and a cost function are.

Shapes: B decision dates, C candidates, H decision steps, N assets, I iterations of a planner.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.space import ActionSpace

# Candidates have weights_BCHN, signals_BCHN and hedge_BCH; the cost is cost_BC, lower is better, NaN counts as worst.
Cost = Callable[[PortfolioAction], Tensor]


@dataclass(frozen=True)
class Account:
    """Why a plan costs what it costs, and where it leads if returns are as expected; shares of wealth.

    Attributes:
        terms: the cost_B of each part of the cost; they add up to the plan's.
        held_BHN: holdings before each trade; holdings_BHN: after it.
        growth_BH: log growth of each step; volatility_BH: of its return; cost_BH; turnover_BH: one-way.
    """

    terms: dict[str, Tensor]
    held_BHN: Tensor
    holdings_BHN: Tensor
    growth_BH: Tensor
    volatility_BH: Tensor
    cost_BH: Tensor
    turnover_BH: Tensor


@dataclass(frozen=True)
class Plan:
    """What to do on each of B dates, and the account of how it was found.

    Attributes:
        path: weights_BHN, signals_BHN, hedge_BH: the cheapest candidate that was seen.
        cost_B: its cost.
        cost_IB: lowest cost seen up to each iteration.
        weights_IBN: weights of the first step that the search stood at, by iteration.
        effective_samples_IB: 1 / sum of squared weights of the candidates that the next iteration was fitted to; no
            rows where a planner does not sample.
        account: of the path, where the cost function gives one.
    """

    path: PortfolioAction
    cost_B: Tensor
    cost_IB: Tensor
    weights_IBN: Tensor
    effective_samples_IB: Tensor
    account: Account | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            FinJEPAError: if a number of the path, its cost or its account is not finite.
        """
        numbers = [self.cost_B, self.path.weights_XN, self.path.signals_XN, self.path.hedge_X]
        if self.account is not None:
            numbers += [part for part in vars(self.account).values() if isinstance(part, Tensor)]
        if not all(bool(part.isfinite().all()) for part in numbers):
            raise FinJEPAError(
                "no plan has a finite cost here: the utility divides by what is 0 or is too large, or the model's forecast is "
                "not finite; change the utility, or train again"
            )

    @property
    def action(self) -> PortfolioAction:
        """The first step, which is what is traded, whatever planner found it: weights_BN, signals_BN, hedge_B."""
        return self.path.map(lambda x: x[:, 0]).without_idle_hedge()

    def shifted(self) -> PortfolioAction:
        """The path as seen one decision later: its first step dropped, its last one repeated."""
        return self.path.map(lambda x: torch.cat([x[:, 1:], x[:, -1:]], dim=1))


class Planner(Protocol):
    def plan(
        self, cost: Cost, space: ActionSpace, warm_start: Plan | None = None, generator: torch.Generator | None = None
    ) -> Plan:
        """Search `space` for a path of low cost on all dates at once.

        Args:
            warm_start: the plan of the decision before, which is shifted by one step and refined.
            generator: source of all randomness; the same seed gives the same plan, bit for bit, on one device.

        Raises:
            FinJEPAError: if `warm_start` has other dates, steps or assets than `space`.
        """
        ...


class Record:
    """The best candidate of a search so far, and what a `Plan` keeps of every iteration."""

    def __init__(self, cost: Cost):
        self._cost = cost
        self._path: PortfolioAction | None = None
        self._costs: list[Tensor] = []  # lowest so far
        self._weights: list[Tensor] = []
        self._effective: list[Tensor] = []

    def evaluate(self, actions: PortfolioAction) -> Tensor:
        """Costs of candidates, where what is not a finite number is worst; candidate 0 stands for the mean.

        Returns:
            cost_BC, free of NaN.
        """
        cost_BC = self._cost(actions).detach()
        cost_BC = torch.where(cost_BC.isfinite(), cost_BC, torch.inf)
        cheapest_B, index_B = cost_BC.min(dim=1)
        dates_B = torch.arange(len(index_B), device=index_B.device)
        path = actions.map(lambda x: x.detach()[dates_B, index_B])
        if self._path is not None:
            better_B = cheapest_B < self._costs[-1]
            path = path.where(better_B, self._path)
            cheapest_B = torch.minimum(cheapest_B, self._costs[-1])
        self._path = path
        self._costs.append(cheapest_B)
        self._weights.append(actions.weights_XN[:, 0, 0].detach())
        return cost_BC

    def follow(self, weights_BE: Tensor) -> None:
        """Note the weights of the candidates that the next iteration is fitted to."""
        self._effective.append(effective_samples(weights_BE))

    def plan(self) -> Plan:
        """The plan that was found, after at least one evaluation."""
        assert self._path is not None
        effective = torch.stack(self._effective) if self._effective else torch.zeros(0, len(self._costs[-1]))
        account = getattr(self._cost, "account", None)  # a cost function that can say why, such as `Objective`
        costs, weights = torch.stack(self._costs), torch.stack(self._weights)
        return Plan(self._path, self._costs[-1], costs, weights, effective, account(self._path) if account else None)


def effective_samples(weights_BE: Tensor) -> Tensor:
    """Kish's effective sample size 1 / sum w^2 of weights that sum to 1, 0 where they are all 0: effective_B."""
    total_B, squares_B = weights_BE.sum(-1), weights_BE.square().sum(-1)
    return total_B.square() / squares_B.clamp(min=torch.finfo(squares_B.dtype).tiny)
