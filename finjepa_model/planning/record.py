"""Keeps the best candidate that a search has seen, and how the search went.

Shapes: B decision dates, C candidates, E candidates that a fit follows, H decision steps, N assets.
"""

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.planning.plan import Accountable, Cost, Plan


class Record:
    """The running account of one search."""

    def __init__(self, cost: Cost):
        self._cost = cost
        self._path: PortfolioAction | None = None
        self._best_B: Tensor | None = None
        self._costs: list[Tensor] = []
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
        if self._best_B is None or self._path is None:
            self._best_B, self._path = cheapest_B, path
        else:
            better_B, before = cheapest_B < self._best_B, self._path
            better_B1, better_B11 = better_B[:, None], better_B[:, None, None]
            self._path = PortfolioAction(
                torch.where(better_B11, path.weights_XN, before.weights_XN),
                torch.where(better_B11, path.signals_XN, before.signals_XN),
                torch.where(better_B1, path.hedge_X, before.hedge_X),
            )
            self._best_B = torch.minimum(cheapest_B, self._best_B)
        self._costs.append(self._best_B)
        self._weights.append(actions.weights_XN[:, 0, 0].detach())
        return cost_BC

    def follow(self, weights_BE: Tensor) -> None:
        """Note the weights of the candidates that the next iteration is fitted to."""
        self._effective.append(effective_samples(weights_BE))

    def plan(self) -> Plan:
        if self._path is None or self._best_B is None:
            raise ValueError("a plan needs at least one evaluation")
        effective = torch.stack(self._effective) if self._effective else torch.zeros(0, len(self._best_B))
        account = self._cost.account(self._path) if isinstance(self._cost, Accountable) else None
        costs, weights = torch.stack(self._costs), torch.stack(self._weights)
        return Plan(self._path, self._best_B, costs, weights, effective, account)


def effective_samples(weights_BE: Tensor) -> Tensor:
    """Kish's effective sample size 1 / sum w^2 of weights that sum to 1, 0 where they are all 0: effective_B."""
    total_B, squares_B = weights_BE.sum(-1), weights_BE.square().sum(-1)
    return total_B.square() / squares_B.clamp(min=torch.finfo(squares_B.dtype).tiny)
