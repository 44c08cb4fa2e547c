"""A finished plan, and what a planner and a cost function are.

Shapes: B decision dates, C candidates, H decision steps, N assets, I iterations of a planner.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.planning.space import ActionSpace

# Candidates have weights_BCHN, signals_BCHN and hedge_BCH; the cost is cost_BC, lower is better, NaN counts as worst.
Cost = Callable[[PortfolioAction], Tensor]


@dataclass(frozen=True)
class Plan:
    """What to do on each of B dates, and the account of how it was found.

    Attributes:
        path: weights_BHN, signals_BHN, hedge_BH: the cheapest candidate that was seen.
        cost_B: its cost.
        cost_IB: lowest cost seen up to each iteration.
        weights_IBN: mean weights of the first step, by iteration.
        effective_samples_IB: 1 / sum of squared weights of the candidates that the next iteration was fitted to.
    """

    path: PortfolioAction
    cost_B: Tensor
    cost_IB: Tensor
    weights_IBN: Tensor
    effective_samples_IB: Tensor

    @property
    def action(self) -> PortfolioAction:
        """The first step, which is what is traded: weights_BN, signals_BN, hedge_B."""
        return self.path.map(lambda x: x[:, 0])

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
