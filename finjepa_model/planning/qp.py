"""The receding-horizon mean-variance problem of a utility, and the planner that solves it.

    max  sum_h mean_h'x_h - x_h'covariance_h x_h / 2 - price'|x_h - x_{h-1}|

over positions x_h (shares of the largest gross exposure) with sum |x_h| <= 1, |x_h| <= cap, x >= 0 unless shorts are
allowed; x_{-1} are the holdings now. Drift between steps is left out.

Shapes: B decision dates, C candidates, H decision steps, N assets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.goals import RISK_AVERSION, target_holdings
from finjepa_model.planning.objective import CUMULATIVE, GOAL_DISTANCES, Objective
from finjepa_model.planning.plan import (
    ActionSpace,
    Cost,
    Plan,
    Record,
    action_of_positions,
    project_to_exposure,
    project_to_simplex,
)
from finjepa_model.planning.utility import parse_goal

_ITERATIONS = 150
_LINEAR = ("log_growth", "variance", "turnover", "cost")


@dataclass(frozen=True)
class Quadratic:
    """The problem above; absent assets have zeros throughout."""

    mean_BHN: Tensor
    covariance_BHNN: Tensor
    price_BHN: Tensor
    borrow_BHN: Tensor  # of what is held short
    held_BN: Tensor
    most: float = 1.0  # sum |x|

    @classmethod
    def together(cls, problems: "Sequence[Quadratic]") -> "Quadratic":
        """Problems of the same `most`, one after the other."""
        names = ("mean_BHN", "covariance_BHNN", "price_BHN", "borrow_BHN", "held_BN")
        return replace(problems[0], **{name: torch.cat([getattr(one, name) for one in problems]) for name in names})


def quadratic_of(objective: Objective, hedged: bool) -> Quadratic:
    """The part of the utility that is growth, variance and turnover; what else is in it is left out.

    A hedge shorts the market proxy by the beta of the positions, which takes beta times its expected return, and its price.

    Raises:
        FinJEPAError: for a utility that is not linear in these quantities.
    """
    world, utility = objective.world, objective.utility
    rules, moments, beta_BN = world.simulator.config, world.moments, world.moments.beta_BN
    slopes = utility.slopes(_LINEAR)
    if slopes is None:
        raise FinJEPAError(
            f"the planner qp cannot solve the utility {utility.text!r}, which is not linear in {', '.join(_LINEAR)}; use mppi, "
            "cem or gradient"
        )
    growth, risk = slopes["log_growth"], max(-2 * slopes["variance"], 0.0)
    spread = world.frictions.spread
    price = growth * torch.as_tensor(spread) - (slopes["turnover"] / 2 + slopes["cost"] * spread)
    gross, mean_BHN = rules.max_gross, growth * moments.mean_BHN
    covariance_BHNN = moments.covariance_BHMM[..., :-1, :-1]
    if hedged:
        fee = rules.hedge_cost_bps * 1e-4 + rules.borrow_rate / rules.sessions_per_year * world.sessions
        relief_BH1 = growth * (moments.market_mean_BH + fee).unsqueeze(-1)
        mean_BHN = mean_BHN - beta_BN.unsqueeze(1) * relief_BH1
        eye_BNN = torch.diag_embed(torch.ones_like(beta_BN))
        with_hedge_B1NM = torch.cat([eye_BNN, -beta_BN.unsqueeze(-1)], dim=-1).unsqueeze(1)
        covariance_BHNN = with_hedge_B1NM @ moments.covariance_BHMM @ with_hedge_B1NM.mT
    return Quadratic(
        gross * mean_BHN,
        gross**2 * risk * covariance_BHNN,
        gross * torch.as_tensor(price).to(mean_BHN).clamp(min=0).expand_as(mean_BHN),
        growth * gross * world.sessions * torch.as_tensor(world.frictions.borrow).to(mean_BHN).expand_as(mean_BHN),
        torch.where(moments.present_BN, world.state.holdings_XN, 0.0) / gross,
        min(1.0, max(utility.most_gross() / gross, 0.01)),
    )


def solve(problem: Quadratic, space: ActionSpace) -> Tensor:
    """The solutions x_2BHN, one that may keep cash and one that is fully invested (sum x = 1, without shorts), by ADMM (Boyd et
    al. 2011) on the splits x = u (constraints) and x_h - x_{h-1} = v (trades).

    The quadratic step is exact, and with the geometric mean of the extreme curvatures as penalty the rate is that of the
    root of the condition number; 150 iterations come within two thousandths of the value of an interior-point solver (test).

    Raises:
        FinJEPAError: if the curvature is not positive in single precision.
    """
    batch, horizon, assets = problem.mean_BHN.shape
    unknowns = horizon * assets
    eye_NN, eye_HH = torch.eye(assets).to(problem.mean_BHN), torch.eye(horizon).to(problem.mean_BHN)
    curvature_BHN = torch.linalg.eigvalsh(problem.covariance_BHNN)
    steepest_B11 = curvature_BHN.amax((1, 2), keepdim=True).clamp(min=1e-9)
    flattest_B11 = curvature_BHN.masked_fill(curvature_BHN < 1e-6 * steepest_B11, torch.inf).amin((1, 2), keepdim=True)
    penalty_B11 = (torch.minimum(flattest_B11, steepest_B11) * steepest_B11).sqrt().clamp(min=1e-6)

    difference_HH = eye_HH - torch.diag(torch.ones(horizon - 1), -1).to(eye_HH)
    hessian = torch.einsum("hg,nm->hngm", eye_HH + difference_HH.T @ difference_HH, eye_NN).expand(
        batch, -1, -1, -1, -1
    )
    hessian = (penalty_B11[..., None, None] * hessian).clone()
    steps = torch.arange(horizon)
    hessian[:, steps, :, steps] += (problem.covariance_BHNN + 1e-9 * eye_NN).transpose(0, 1)
    factor_BQQ, failed_B = torch.linalg.cholesky_ex(hessian.reshape(batch, unknowns, unknowns))
    if failed_B.any():
        raise FinJEPAError(
            "the planner qp cannot solve this utility: its numbers are too far apart; use mppi, cem or gradient"
        )
    price_BHN, borrow_BHN = problem.price_BHN / penalty_B11, problem.borrow_BHN / penalty_B11
    smaller = replace(space, max_weight=min(space.max_weight / problem.most, 1.0))
    present_B1N = space.present_BN.unsqueeze(1)

    def project(x_2BHN: Tensor) -> Tensor:
        free_BHN, invested_BHN = x_2BHN
        if space.allow_short:
            free_BHN = torch.where(free_BHN < 0, (free_BHN + borrow_BHN).clamp(max=0), free_BHN)
        free_BHN = problem.most * project_to_exposure(free_BHN / problem.most, smaller)
        return torch.stack([free_BHN, project_to_simplex(invested_BHN, present_B1N, space.max_weight)])

    first_BHN = torch.zeros_like(problem.mean_BHN)
    first_BHN[:, 0] = problem.held_BN
    u_2BHN = project(problem.held_BN.unsqueeze(1).expand(2, *problem.mean_BHN.shape))
    v_2BHN, y_2BHN, z_2BHN = difference_HH @ u_2BHN - first_BHN, torch.zeros_like(u_2BHN), torch.zeros_like(u_2BHN)
    for _ in range(_ITERATIONS):
        splits_2BHN = u_2BHN - y_2BHN + difference_HH.T @ (v_2BHN - z_2BHN + first_BHN)
        right_BQ2 = (problem.mean_BHN + penalty_B11 * splits_2BHN).view(2, batch, unknowns).permute(1, 2, 0)
        x_2BHN = torch.cholesky_solve(right_BQ2, factor_BQQ).permute(2, 0, 1).reshape(2, batch, horizon, assets)
        y_2BHN, z_2BHN = y_2BHN + x_2BHN, z_2BHN + difference_HH @ x_2BHN - first_BHN
        u_2BHN, v_2BHN = project(y_2BHN), z_2BHN - z_2BHN.clamp(-price_BHN, price_BHN)
        y_2BHN, z_2BHN = y_2BHN - u_2BHN, z_2BHN - v_2BHN
    return u_2BHN


_SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)  # of a solution


def simple_plans(objective: Objective, space: ActionSpace) -> PortfolioAction:
    """Candidates that no planner may do worse than, by its own account: no holdings, the present ones, 1/N, those behind the
    goals that the cost names, and solutions of the mean-variance part of the cost, with and without a hedge, fully invested and
    with cash allowed, and shares of them (limits and other terms may prefer less). Of a utility without such a part, those of
    `CUMULATIVE`.
    """
    world, named = objective.world, objective.utility.names
    if objective.utility.slopes(_LINEAR) is None:
        objective = replace(objective, utility=CUMULATIVE)
    hedges = (False, True) if space.allow_hedge else (False,)
    problems = [quadratic_of(objective, hedged) for hedged in hedges]
    wide = replace(space, present_BN=space.present_BN.repeat(len(hedges), 1))
    held_BHN = project_to_exposure(problems[0].held_BN.unsqueeze(1).expand_as(problems[0].mean_BHN), space)
    plain = [torch.zeros_like(held_BHN), held_BHN, space.equal_weights().to(held_BHN)]
    goals_BN = [world.moments.best_holdings(RISK_AVERSION, space.max_weight)] if named & GOAL_DISTANCES else []
    targets = map(parse_goal, world.goals)
    goals_BN += [target_holdings(world.moments, world.simulator.config, world.sessions, one)[0] for one in targets]
    found = [action_of_positions(x_BHN, space, hedge=0.0) for x_BHN in plain]
    for goal_BN in goals_BN:
        goal_BHN = goal_BN.unsqueeze(1).expand_as(held_BHN).to(held_BHN)
        found += [action_of_positions(goal_BHN, space, float(hedged)) for hedged in hedges]
    for solved_BHN in solve(Quadratic.together(problems), wide):
        for hedged, x_BHN in zip(hedges, solved_BHN.chunk(len(hedges)), strict=True):
            found += [action_of_positions(share * x_BHN, space, float(hedged)) for share in _SHARES]
    parts = zip(*(vars(one).values() for one in found), strict=True)
    return PortfolioAction(*(torch.cat(part, dim=1) for part in parts))


@dataclass(frozen=True)
class QPPlanner:
    """The cheapest of `simple_plans`; it has no settings."""

    @torch.no_grad()
    def plan(
        self, cost: Cost, space: ActionSpace, warm_start: Plan | None = None, generator: torch.Generator | None = None
    ) -> Plan:
        """See `Planner.plan`; the solution is unique, so neither start nor generator is used.

        Raises:
            FinJEPAError: if the cost is no `Objective`, or has no mean-variance part.
        """
        if not isinstance(cost, Objective):
            raise FinJEPAError("the planner qp needs a cost with a mean-variance part; use cem, mppi or gradient")
        quadratic_of(cost, hedged=False)  # which refuses what cannot be solved
        record = Record(cost)
        record.evaluate(simple_plans(cost, space))
        return record.plan()
