"""From what is held to the budgets that are best for the step that comes: a few proximal steps along known slopes.

Shapes: Y portfolios, H states of the hedge, N assets, P places of a projection, X any batch dimensions.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from finjepa_model.config import PortfolioConfig
from finjepa_model.planning.space import project_to_simplex
from finjepa_model.zero_shot.effects import Effects

ROUNDS = 8
_SHORTER, _LONGER = 0.5, 1.2  # a step that turned back is too long, one that goes on may be too short (Rprop)


@dataclass(frozen=True)
class Places:
    """Where budgets can go: cash, the assets, and the assets sold short."""

    present_YP: Tensor
    savings: int
    assets: int
    rules: PortfolioConfig

    @classmethod
    def of(cls, present_YN: Tensor, rules: PortfolioConfig) -> "Places":
        # cash may be all of the wealth, so under a cap on one place it has as many as that takes
        savings = math.ceil(1 / rules.max_weight)
        there_YS = torch.ones_like(present_YN[:, :1]).expand(-1, savings)
        parts = [there_YS, present_YN, present_YN] if rules.allow_short else [there_YS, present_YN]
        return cls(torch.cat(parts, dim=-1), savings, present_YN.shape[-1], rules)

    def nearest(self, raw_XN: Tensor, save_X1: Tensor) -> tuple[Tensor, Tensor]:
        """Signed budgets nearest to raw ones and what is saved beside them; absolute values sum to 1."""
        saved_XS = save_X1 if self.savings == 1 else (save_X1 / self.savings).expand(*raw_XN.shape[:-1], self.savings)
        parts = [saved_XS, raw_XN, -raw_XN] if self.rules.allow_short else [saved_XS, raw_XN]
        share_XP = project_to_simplex(torch.cat(parts, dim=-1), self.present_YP, self.rules.max_weight)
        saved_XS, budget_XN, *short = share_XP.split([self.savings, *[self.assets] * (len(parts) - 1)], dim=-1)
        return budget_XN - short[0] if short else budget_XN, saved_XS.sum(-1, keepdim=True)


def ascend(
    effects: Effects,
    places: Places,
    held_YN: Tensor,
    present_YN: Tensor,
    rate_HYN: Tensor,
    move_HYN: Tensor,
) -> Tensor:
    """Proximal gradient ascent (Parikh and Boyd 2014, section 4.2).

    The slopes know the step that comes but not the price of trading, which has a kink at what is held: the proximal step
    knows it, so that what does not pay is not traded. Steps differ in length, so they follow what a slope has beyond the
    worth of the wealth that it takes; otherwise they would drift from the optimum along what all assets have in common.

    Slopes are taken as given: the gradient reaches lengths and moves, and does not grow from step to step.

    Args:
        held_YN: budgets to begin from.
        rate_HYN: lengths of the first steps, in units of Newton's for each position alone; at most that long.
        move_HYN: added to every step, of whatever the slopes do not know.

    Returns:
        budget_HYN.
    """
    gross, shorts, traded_YN = places.rules.max_gross, places.rules.allow_short, effects.traded_YN
    bend_HYN = effects.curvatures().abs()
    budget_HYN, save_HY1 = held_YN.expand_as(rate_HYN), 1 - held_YN.abs().sum(-1, keepdim=True)
    change_HYN = torch.zeros_like(budget_HYN)
    share_YN = present_YN / present_YN.sum(-1, keepdim=True)  # cash moves as an asset on average
    went_HYN: Tensor | None = None
    for _ in range(ROUNDS):
        slope_HYN = effects.slopes(gross * budget_HYN.detach())
        worth_HY1 = (budget_HYN.detach() * (slope_HYN - traded_YN * change_HYN.sign())).sum(-1, keepdim=True)
        if shorts:
            beyond_HYN = torch.where(
                budget_HYN == 0,
                F.relu(slope_HYN.abs() - worth_HY1) * slope_HYN.sign(),
                slope_HYN - worth_HY1 * budget_HYN.sign(),
            )
            moves_HYN = present_YN
        else:
            beyond_HYN = slope_HYN - worth_HY1
            moves_HYN = present_YN & ((budget_HYN > 0) | (beyond_HYN > 0))
        steepest_HY1 = (beyond_HYN.abs() * moves_HYN).amax(-1, keepdim=True).clamp(min=1e-6)
        length_HYN = rate_HYN / (bend_HYN + steepest_HY1)
        raw_HYN = change_HYN + length_HYN * beyond_HYN + move_HYN
        still_HYN = length_HYN * traded_YN
        raw_HYN = held_YN + raw_HYN - torch.clamp(raw_HYN, -still_HYN, still_HYN)
        last_HYN = budget_HYN
        budget_HYN, save_HY1 = places.nearest(
            raw_HYN, save_HY1 - worth_HY1 * (share_YN * length_HYN).sum(-1, keepdim=True)
        )
        change_HYN, step_HYN = budget_HYN - held_YN, budget_HYN - last_HYN
        if went_HYN is not None:
            rate_HYN = rate_HYN * torch.where(step_HYN * went_HYN < 0, _SHORTER, _LONGER)
        went_HYN = step_HYN
    return budget_HYN
