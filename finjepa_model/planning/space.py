"""What a plan may be: weights on the (capped) simplex, signals, a hedge, and who is there to be held.

Shapes: B decision dates, C candidates, H decision steps, N assets, X any batch dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from finjepa_model.actions import DUST, PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.errors import FinJEPAError


def project_to_simplex(points_XN: Tensor, present_XN: Tensor, max_weight: float = 1.0) -> Tensor:
    """Euclidean projection onto {w: sum w = 1, 0 <= w <= max_weight, w = 0 where an asset is absent}.

    Exact, by sorting: the projection is clip(v - tau, 0, max_weight), and tau solves an equation that is linear between
    breakpoints (Duchi et al. 2008 for the simplex; Wang and Lu 2015 with caps).

    Args:
        points_XN: any finite numbers.
        present_XN: bool, broadcasts; at least 1 / max_weight assets must be present.

    Returns:
        weights_XN.
    """
    if max_weight >= 1:  # no weight can exceed the sum, so the cap is idle
        points_XN = points_XN.masked_fill(~present_XN, -torch.inf)
        counts_N = torch.arange(1, points_XN.shape[-1] + 1, dtype=points_XN.dtype, device=points_XN.device)
        sums_XN = torch.sort(points_XN, dim=-1, descending=True).values.cumsum(-1)
        tau_X1 = ((sums_XN - 1) / counts_N).amax(-1, keepdim=True)
        return (points_XN - tau_X1).clamp_(min=0)
    lowest_X1 = points_XN.masked_fill(~present_XN, torch.inf).amin(-1, keepdim=True)
    points_XN = torch.where(present_XN, points_XN, lowest_X1 - 2 * max_weight - 1)
    breaks_XM, order_XM = torch.sort(torch.cat([points_XN, points_XN - max_weight], -1), dim=-1, descending=True)
    entering_XM = (order_XM < points_XN.shape[-1]).to(points_XN.dtype)
    slopes_XM = (2 * entering_XM - 1).cumsum(-1)[..., :-1]  # assets strictly between 0 and the cap, by segment of tau
    sums_XM = (slopes_XM * (breaks_XM[..., :-1] - breaks_XM[..., 1:])).cumsum(-1)
    segment_X1 = (sums_XM >= 1 - 1e-6).to(torch.uint8).argmax(-1, keepdim=True)  # where tau lies
    excess_X1 = sums_XM.gather(-1, segment_X1) - 1
    tau_X1 = breaks_XM.gather(-1, segment_X1 + 1) + excess_X1 / slopes_XM.gather(-1, segment_X1)
    return torch.where(present_XN, (points_XN - tau_X1).clamp(min=0, max=max_weight), 0.0)


@dataclass(frozen=True)
class ActionSpace:
    """The plans that are allowed on B dates, over `horizon` decision steps.

    Attributes:
        present_BN: bool, the assets that exist and may be held.
        max_weight: cap on one asset's budget, as a share of wealth.

    Raises:
        FinJEPAError: if a date has too few assets for weights that sum to 1 under the cap.
    """

    present_BN: Tensor
    horizon: int
    max_weight: float = 1.0
    allow_short: bool = False
    allow_hedge: bool = True

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise FinJEPAError(f"the planning horizon must be at least one decision step, not {self.horizon}")
        fewest = int(self.present_BN.sum(-1).min())
        if fewest == 0:
            raise FinJEPAError("nothing to plan: no asset is present on a decision date; choose a date with prices")
        if fewest * self.max_weight < 1 - 1e-6:
            raise FinJEPAError(
                f"portfolio.max_weight={self.max_weight:g} leaves no full allocation over {fewest} assets; "
                f"set it to at least {1 / fewest:.4g} or add assets"
            )

    @classmethod
    def from_config(cls, config: PortfolioConfig, present_BN: Tensor, horizon: int) -> "ActionSpace":
        return cls(present_BN, horizon, config.max_weight, config.allow_short, config.allow_hedge)

    def project(self, raw_BCHN: Tensor) -> Tensor:
        """Weights that are allowed and nearest to raw ones, which are any finite numbers."""
        return project_to_simplex(raw_BCHN, self.present_BN[:, None, None], self.max_weight)

    def tangent(self, slope_BCHN: Tensor) -> Tensor:
        """The part of a slope that keeps the sum of the weights."""
        present_B11N = self.present_BN[:, None, None].to(slope_BCHN.dtype)
        mean_BCH1 = (slope_BCHN * present_B11N).sum(-1, keepdim=True) / present_B11N.sum(-1, keepdim=True)
        return (slope_BCHN - mean_BCH1) * present_B11N

    def equal_weights(self) -> Tensor:
        """1/N over the present assets at every step: weights_BHN."""
        present_BN = self.present_BN.to(torch.get_default_dtype())
        weights_BN = present_BN / present_BN.sum(-1, keepdim=True)
        return weights_BN.unsqueeze(1).expand(-1, self.horizon, -1)

    def refuse_mismatch(self, path: PortfolioAction) -> None:
        """
        Raises:
            FinJEPAError: if a path_BH does not have this space's dates, steps and assets.
        """
        dates, assets = self.present_BN.shape
        wanted = (dates, self.horizon, assets)
        if tuple(path.weights_XN.shape) != wanted:
            raise FinJEPAError(
                f"the plan to start from has shape {tuple(path.weights_XN.shape)} (dates, steps, assets), but this "
                f"decision needs {wanted}; start without it"
            )


def project_to_exposure(x_BHN: Tensor, space: ActionSpace) -> Tensor:
    """Nearest positions with sum |x| <= 1, |x| <= cap, and none short where that is not allowed."""
    size_BHN = x_BHN.abs() if space.allow_short else x_BHN.clamp(min=0)
    inside_BHN = size_BHN.clamp(max=space.max_weight)
    full_BHN = project_to_simplex(size_BHN, space.present_BN.unsqueeze(1), space.max_weight)
    size_BHN = torch.where(inside_BHN.sum(-1, keepdim=True) <= 1, inside_BHN, full_BHN)
    return torch.where(space.present_BN.unsqueeze(1), size_BHN * x_BHN.sign(), 0.0)


def action_of_positions(x_BHN: Tensor, space: ActionSpace, hedge: float) -> PortfolioAction:
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
