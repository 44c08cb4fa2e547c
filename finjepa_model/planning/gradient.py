"""Projected Adam on relaxed actions: a control for what gradients of the cost add to a search.

Shapes: B decision dates, C starts, H decision steps, N assets.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.planning.plan import Cost, Plan, Record
from finjepa_model.planning.search import Proposal, ProposalConfig
from finjepa_model.planning.space import ActionSpace

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True, kw_only=True)
class GradientPlanner:
    """Follows the slope of the cost from several starts at once: weights are projected onto the simplex after every step,
    signals and the hedge are relaxed to intervals and rounded in the end.

    Only actions that can be traded are ever a plan: what is relaxed is rounded before it is put on record.
    """

    starts: int = 8
    iterations: int = 40
    relaxed_share: float = 0.6  # of the iterations; then signals and hedge are rounded, and weights are refined alone
    weight_rate: float = 0.2  # Adam's step, a share of wealth; it falls to a tenth
    signal_rate: float = 0.4
    proposal: ProposalConfig = field(default_factory=ProposalConfig)

    def plan(
        self, cost: Cost, space: ActionSpace, warm_start: Plan | None = None, generator: torch.Generator | None = None
    ) -> Plan:
        """See `Planner.plan`."""
        record = Record(cost)
        starts = Proposal.start(space, self.proposal, warm_start).sample(self.starts, generator).actions
        low = -1.0 if space.allow_short else 0.0
        parts = [starts.weights_XN, starts.signals_XN, starts.hedge_X]
        first = [torch.zeros_like(part) for part in parts]
        second = [torch.zeros_like(part) for part in parts]
        relaxed = round(self.relaxed_share * self.iterations)
        for iteration in range(self.iterations):
            with torch.no_grad():
                record.evaluate(_rounded(parts))
            if iteration == relaxed:
                positions = parts[0] * parts[1].abs()
                parts = [space.project(positions), parts[1].round(), parts[2].round()]
            moving = 3 if iteration < relaxed else 1
            slopes = _slopes(cost, parts, moving)
            pace = 0.1 ** (iteration / self.iterations)
            # Weights move along the simplex, and at one pace: a pace for each would bend the direction, and what weights have
            # in common would set it and be projected away.
            slopes = (space.tangent(slopes[0]), *slopes[1:])
            for i, slope in enumerate(slopes):
                first[i] = first[i].lerp(slope, 1 - _BETAS[0])
                square = slope.square().mean(-1, keepdim=True) if i == 0 else slope.square()
                second[i] = second[i].lerp(square, 1 - _BETAS[1])
                mean = first[i] / (1 - _BETAS[0] ** (iteration + 1))
                root = (second[i] / (1 - _BETAS[1] ** (iteration + 1))).sqrt()
                rate = pace * (self.weight_rate if i == 0 else self.signal_rate)
                parts[i] = parts[i] - rate * mean / (root + _EPSILON)
            parts[0] = space.project(parts[0])
            parts[1] = parts[1].clamp(low, 1.0)
            parts[2] = parts[2].clamp(0.0, 1.0) * float(space.allow_hedge)
        with torch.no_grad():
            record.evaluate(_rounded(parts))
            return record.plan()


def _slopes(cost: Cost, parts: list[Tensor], moving: int) -> tuple[Tensor, ...]:
    """Of the cost in the first `moving` of weights, signals and hedge; 0 where it is not a number."""
    leaves = [part.detach().requires_grad_(i < moving) for i, part in enumerate(parts)]
    with torch.enable_grad():
        cost_BC = cost(PortfolioAction(*leaves))
        finite_BC = torch.where(cost_BC.isfinite(), cost_BC, 0.0)
        total = finite_BC.sum() + 0 * leaves[0].sum()  # a cost may not depend on what moves
        slopes = torch.autograd.grad(total, leaves[:moving], allow_unused=True)
    pairs = zip(slopes, leaves, strict=False)
    return tuple(torch.zeros_like(leaf) if slope is None else slope.nan_to_num(0, 0, 0) for slope, leaf in pairs)


def _rounded(parts: list[Tensor]) -> PortfolioAction:
    """The nearest action that can be traded."""
    weights_BCHN, signals_BCHN, hedge_BCH = parts
    return PortfolioAction(weights_BCHN, signals_BCHN.round(), hedge_BCH.round())
