"""What a planner is, what a plan may be (weights on the capped simplex, signals, a hedge), and what a finished plan keeps.

Shapes: B decision dates, C candidates, H decision steps, N assets, I iterations of a planner, X any batch dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from finjepa_model.actions import DUST, PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.errors import FinJEPAError


def project_to_simplex(points_XN: Tensor, present_XN: Tensor, max_weight: float = 1.0) -> Tensor:
    """Euclidean projection onto {w: sum w = 1, 0 <= w <= max_weight, w = 0 where an asset is absent}.

    Exact, by sorting: the projection is clip(v - tau, 0, max_weight), and tau solves an equation that is linear between
    breakpoints (Duchi et al. 2008 for the simplex; Wang and Lu 2015 with caps).

    At least 1 / max_weight assets must be present; `present_XN` broadcasts.
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
    """The plans that are allowed on B dates, over `horizon` decision steps, of the assets that are present.

    Raises:
        FinJEPAError: if a date has too few assets for weights that sum to 1 under the cap.
    """

    present_BN: Tensor
    horizon: int
    max_weight: float = 1.0
    allow_short: bool = False
    allow_hedge: bool = True

    def __post_init__(self) -> None:
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


def project_to_exposure(x_BHN: Tensor, space: ActionSpace) -> Tensor:
    """Nearest positions with sum |x| <= 1, |x| <= cap, and none short where that is not allowed."""
    x_BHN = torch.where(space.present_BN.unsqueeze(1), x_BHN, 0.0)
    size_BHN = x_BHN.abs() if space.allow_short else x_BHN.clamp(min=0)
    inside_BHN = size_BHN.clamp(max=space.max_weight)
    full_BHN = project_to_simplex(size_BHN, space.present_BN.unsqueeze(1), space.max_weight)
    size_BHN = torch.where(inside_BHN.sum(-1, keepdim=True) <= 1, inside_BHN, full_BHN)
    return size_BHN * x_BHN.sign() if space.allow_short else size_BHN


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


# Candidates have weights_BCHN, signals_BCHN and hedge_BCH; the cost is cost_BC, lower is better, NaN counts as worst.
Cost = Callable[[PortfolioAction], Tensor]


@dataclass(frozen=True)
class Account:
    """Why a plan costs what it costs, and where it leads if returns are as expected."""

    terms: dict[str, Tensor]  # the cost_B of each part of the cost; they add up to the plan's
    growth_BH: Tensor  # log growth of wealth in each step, costs included
    volatility_BH: Tensor  # of each step's return

    @property
    def cost_B(self) -> Tensor:
        return torch.stack(list(self.terms.values())).sum(0)


@dataclass(frozen=True)
class Plan:
    """What to do on each of B dates, and how it was found.

    Raises:
        FinJEPAError: if a number of the path, its cost or its account is not finite.
    """

    path: PortfolioAction  # weights_BHN, signals_BHN, hedge_BH: the cheapest candidate that was seen
    cost_B: Tensor
    cost_IB: Tensor  # lowest cost seen up to each iteration
    weights_IBN: Tensor  # of the first step: where the search stood, by iteration
    # 1 / sum of squared weights of the candidates that the next iteration was fitted to; no rows where nothing is sampled
    effective_samples_IB: Tensor
    account: Account | None = None  # of the path, where the cost function gives one
    tied_B: Tensor | None = None  # bool: another first step was seen that costs the same; see `TIE` and `APART`

    def __post_init__(self) -> None:
        numbers = [self.cost_B, self.path.weights_XN, self.path.signals_XN, self.path.hedge_X]
        if self.account is not None:
            numbers += [self.account.growth_BH, self.account.volatility_BH]
        if not all(bool(part.isfinite().all()) for part in numbers):
            raise FinJEPAError(
                "no plan has a finite cost here: the utility divides by what is 0 or is too large, or the model's forecast is "
                "not finite; change the utility, or train again"
            )

    @property
    def action(self) -> PortfolioAction:
        """The first step, which is what is traded, whatever planner found it: weights_BN, signals_BN, hedge_B."""
        return self.path.first_step()

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


TIE = 1e-4  # of a cost, and at least a hundredth of a basis point of wealth
APART = 0.05  # of wealth, one-way: from here on two first steps are different portfolios


class Record:
    """The best candidate of a search so far, and what a `Plan` keeps of every iteration."""

    def __init__(self, cost: Cost):
        self._cost = cost
        self._path: PortfolioAction | None = None
        self._costs: list[Tensor] = []  # lowest so far
        self._weights: list[Tensor] = []
        self._effective: list[Tensor] = []
        self._settled: tuple[PortfolioAction, Tensor] | None = None
        self._rivals: list[tuple[Tensor, Tensor]] = []  # first steps held_BM and their cost_B

    def evaluate(self, actions: PortfolioAction) -> Tensor:
        """Costs of candidates, where what is not a finite number is worst; candidate 0 stands for the mean.

        Returns:
            cost_BC, free of NaN.
        """
        cost_BC, actions = self._cost(actions).detach(), actions.map(torch.detach)
        cost_BC = torch.where(cost_BC.isfinite(), cost_BC, torch.inf)
        cheapest_B, index_B = cost_BC.min(dim=1)
        dates_B = torch.arange(len(index_B), device=index_B.device)
        path, held_BCM = actions.map(lambda x: x[dates_B, index_B]), held(actions.first_step())
        near_BC = _apart(held_BCM, held_BCM[dates_B, index_B].unsqueeze(1)) <= APART
        other_B = torch.where(near_BC, torch.inf, cost_BC).argmin(1)
        self._rivals += [(held_BCM[dates_B, one_B], cost_BC[dates_B, one_B]) for one_B in (index_B, other_B)]
        if self._path is not None:
            better_B = cheapest_B < self._costs[-1]
            path = path.where(better_B, self._path)
            cheapest_B = torch.minimum(cheapest_B, self._costs[-1])
        self._path = path
        self._costs.append(cheapest_B)
        self._weights.append(actions.weights_XN[:, 0, 0])
        return cost_BC

    @property
    def path(self) -> PortfolioAction | None:
        """The cheapest candidate so far."""
        return self._path

    @property
    def cost_B(self) -> Tensor:
        """Its cost."""
        return self._costs[-1]

    def settle(self) -> None:
        """The best so far is the plan unless a search finds one that is better by more than `TIE`."""
        if self._path is not None:
            self._settled = self._path, self._costs[-1]

    def follow(self, weights_BE: Tensor) -> None:
        """Note the weights of the candidates that the next iteration is fitted to."""
        self._effective.append(effective_samples(weights_BE))

    def plan(self) -> Plan:
        """The plan that was found, after at least one evaluation."""
        assert self._path is not None
        if self._settled is not None:
            path, cost_B = self._settled
            better_B = ~_same(cost_B, self._costs[-1])
            self._path = self._path.where(better_B, path)
            self._costs[-1] = torch.where(better_B, self._costs[-1], cost_B)
        effective = torch.stack(self._effective) if self._effective else torch.zeros(0, len(self._costs[-1]))
        account = getattr(self._cost, "account", None)  # a cost function that can say why, such as `Objective`
        costs, weights, cost_B = torch.stack(self._costs), torch.stack(self._weights), self._costs[-1]
        held_BM = held(self._path.first_step())
        same = [_same(other_B, cost_B) & (_apart(other_BM, held_BM) > APART) for other_BM, other_B in self._rivals]
        why = account(self._path) if account else None
        return Plan(self._path, cost_B, costs, weights, effective, why, torch.stack(same).any(0))


def held(action: PortfolioAction) -> Tensor:
    """held_XM, signed shares of the largest gross exposure, the hedge last."""
    return torch.cat([action.weights_XN * action.signals_XN, action.hedge_X.unsqueeze(-1)], -1)


def _apart(one_XM: Tensor, other_XM: Tensor) -> Tensor:
    return 0.5 * (one_XM - other_XM).abs().sum(-1)


def tie(cost_B: Tensor) -> Tensor:
    """By how much a cost may be higher and still count as the same."""
    return TIE * cost_B.abs().clamp(min=0.01)


def _same(cost_B: Tensor, least_B: Tensor) -> Tensor:
    return cost_B - least_B <= tie(least_B)


def effective_samples(weights_BE: Tensor) -> Tensor:
    """Kish's effective sample size 1 / sum w^2 of weights that sum to 1, 0 where they are all 0: effective_B."""
    total_B, squares_B = weights_BE.sum(-1), weights_BE.square().sum(-1)
    return total_B.square() / squares_B.clamp(min=torch.finfo(squares_B.dtype).tiny)
