"""The receding-horizon mean-variance QP: what the forecast alone is worth, without a search.

Shapes: B decision dates, C candidates, H decision steps, N assets.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from finjepa_model.actions import DUST, PortfolioAction
from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.plan import Cost, Plan
from finjepa_model.planning.quadratic import Quadratic, project_to_exposure, solve
from finjepa_model.planning.record import Record
from finjepa_model.planning.space import ActionSpace, project_to_simplex

_SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)  # of a solution


@runtime_checkable
class HasQuadratic(Protocol):
    """A cost function that knows its mean-variance part."""

    def quadratic(self, hedged: bool) -> Quadratic: ...


@dataclass(frozen=True, kw_only=True)
class QPConfig:
    """There is nothing to tune."""


class QPPlanner:
    """Solves the mean-variance part of the cost with and without a hedge, fully invested and free to hold cash, and keeps
    the solution, or the share of it, that the whole cost likes best: limits and other terms may want less than all of it.
    Holding nothing and holding on stand beside them.
    """

    def __init__(self, config: QPConfig | None = None):
        self.config = config or QPConfig()

    @torch.no_grad()
    def plan(
        self, cost: Cost, space: ActionSpace, warm_start: Plan | None = None, generator: torch.Generator | None = None
    ) -> Plan:
        """See `Planner.plan`; a problem with one solution needs neither a start nor luck.

        Raises:
            FinJEPAError: if the cost has no mean-variance part.
        """
        record = Record(cost)
        if not isinstance(cost, HasQuadratic):
            raise FinJEPAError("the planner qp needs a cost with a mean-variance part; use cem, mppi or gradient")
        if warm_start is not None:
            space.refuse_mismatch(warm_start.path)
        free = cost.quadratic(hedged=False)
        held_BHN = project_to_exposure(free.held_BN.unsqueeze(1).expand_as(free.mean_BHN), space)
        for x_BHN in (torch.zeros_like(held_BHN), held_BHN):
            record.evaluate(encode(x_BHN, space, hedge=0.0))
        for hedged in (False, True) if space.allow_hedge else (False,):
            problem = cost.quadratic(hedged)
            for invested in (False, True):
                x_BHN = solve(problem, space, invested)
                for share in _SHARES:
                    record.evaluate(encode(share * x_BHN, space, float(hedged)))
        return record.plan()


def encode(x_BHN: Tensor, space: ActionSpace, hedge: float) -> PortfolioAction:
    """The action, a single candidate, whose positions are x_BHN.

    The budget of the cash lies on flat assets. Where they cannot take it all, because nothing or too little is flat, no
    action has these positions, and the nearest fully invested ones stand in.
    """
    size_BHN = torch.where(x_BHN.abs() < DUST, 0.0, x_BHN.abs())
    present_B1N = space.present_BN.unsqueeze(1)
    flat_BHN = present_B1N & (size_BHN == 0)
    rest_BH1 = (1 - size_BHN.sum(-1, keepdim=True)).clamp(min=0)
    share_BH1 = rest_BH1 / flat_BHN.sum(-1, keepdim=True).clamp(min=1)
    fits_BH1 = (share_BH1 <= space.max_weight) & (flat_BHN.any(-1, keepdim=True) | (rest_BH1 < 1e-6))
    invested_BHN = project_to_simplex(size_BHN, present_B1N, space.max_weight)
    weights_BHN = torch.where(fits_BH1, torch.where(flat_BHN, share_BH1, size_BHN), invested_BHN)
    weights_BHN = project_to_simplex(weights_BHN, present_B1N, space.max_weight)  # for the last digit
    sign_BHN = torch.where(fits_BH1 & (size_BHN == 0), 0.0, torch.where(x_BHN < 0, -1.0, 1.0).to(x_BHN))
    signals_BHN = sign_BHN if space.allow_short else sign_BHN.clamp(min=0)
    hedge_BH = torch.full_like(weights_BHN[..., 0], hedge)
    return PortfolioAction(weights_BHN, signals_BHN * present_B1N, hedge_BH).map(lambda x: x.unsqueeze(1))
