"""Action spaces, the projection onto the simplex, positions as actions; the receding-horizon QP against an interior-point one."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.errors import FinJEPAError
from finjepa_model.planners import make_planner
from finjepa_model.planning.objective import Objective
from finjepa_model.planning.plan import ActionSpace, action_of_positions, project_to_exposure, project_to_simplex
from finjepa_model.planning.qp import Quadratic, quadratic_of, solve
from finjepa_model.planning.utility import parse_utility
from tests.model.planning.markets import perfect_market, seeded, world_of


@st.composite
def projections(draw):
    """Points, who is present, and a cap that leaves room."""
    assets = draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.01, 0.3, 3.0, 30.0]))
    points_XN = scale * torch.randn(5, assets, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        points_XN = (points_XN * 4 / scale).round() * scale / 4  # ties
    present_XN = torch.rand(5, assets, generator=generator) < 0.7
    present_XN[:, 0] = True
    fewest = int(present_XN.sum(-1).min())
    cap = draw(st.sampled_from([1.0, 0.5, 0.3, 1 / fewest]))
    return points_XN, present_XN, max(cap, 1 / fewest)


@given(projections())
def test_projection_is_feasible_idempotent_and_nearest(case):
    points_XN, present_XN, cap = case
    weights_XN = project_to_simplex(points_XN, present_XN, cap)
    assert torch.allclose(weights_XN.sum(-1), torch.ones(5, dtype=torch.float64), atol=1e-6)
    assert (weights_XN >= 0).all()
    assert (weights_XN <= cap + 1e-9).all()
    assert (weights_XN[~present_XN] == 0).all()
    assert torch.allclose(project_to_simplex(weights_XN, present_XN, cap), weights_XN, atol=1e-6)
    # the variational inequality of a projection, against the best vertex of a linear objective over the set
    gradient_XN = (points_XN - weights_XN).masked_fill(~present_XN, -torch.inf)
    order_XN = gradient_XN.argsort(-1, descending=True)
    budget_XN = (1 - cap * torch.arange(points_XN.shape[-1])).clamp(min=0, max=cap).expand_as(points_XN)
    vertex_XN = torch.zeros_like(points_XN).scatter(-1, order_XN, budget_XN.to(points_XN.dtype))
    gap_X = ((points_XN - weights_XN) * (vertex_XN - weights_XN)).sum(-1)
    assert (gap_X <= 1e-5 * (1 + points_XN.abs().amax())).all()


def test_projection_in_float32_keeps_the_budget():
    points_XN = torch.randn(1000, 20, generator=torch.Generator().manual_seed(0))
    present_XN = torch.ones(1000, 20, dtype=torch.bool)
    for cap in (1.0, 0.2, 0.05):
        assert (project_to_simplex(points_XN, present_XN, cap).sum(-1) - 1).abs().max() < 1e-6


def test_impossible_spaces_are_refused_with_the_way_out():
    present_BN = torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(FinJEPAError, match=r"max_weight=0.1 .* at least 0.2"):
        ActionSpace.from_config(PortfolioConfig(max_weight=0.1), present_BN, 2)
    with pytest.raises(FinJEPAError, match="no asset is present"):
        ActionSpace(torch.zeros(1, 5, dtype=torch.bool), 1)


def by_interior_point(problem: Quadratic, space: ActionSpace, invested: bool) -> torch.Tensor:
    """Its value_B by Clarabel, which skfolio brings."""
    cvxpy = pytest.importorskip("cvxpy")
    best = []
    batch, horizon, assets = problem.mean_BHN.shape
    for b in range(batch):
        x = cvxpy.Variable((horizon, assets))
        gain, before = 0, problem.held_BN[b].numpy()
        for h in range(horizon):
            risk = cvxpy.quad_form(x[h], problem.covariance_BHNN[b, h].double().numpy(), assume_PSD=True)
            traded = problem.price_BHN[b, h].numpy() @ cvxpy.abs(x[h] - before)
            gain, before = gain + problem.mean_BHN[b, h].numpy() @ x[h] - risk / 2 - traded, x[h]
        rules = [cvxpy.abs(x) <= space.max_weight, cvxpy.sum(cvxpy.abs(x), axis=1) <= 1]
        if invested or not space.allow_short:
            rules.append(x >= 0)
        if invested:
            rules.append(cvxpy.sum(x, axis=1) == 1)
        task = cvxpy.Problem(cvxpy.Maximize(gain), rules)
        task.solve(solver=cvxpy.CLARABEL)
        best.append(task.value)
    return torch.tensor(best)


@pytest.mark.parametrize(
    ("assets", "rules"), [(6, {}), (20, {"max_weight": 0.15}), (20, {"allow_short": True}), (120, {"max_weight": 0.1})]
)
def test_the_solution_is_that_of_an_interior_point_solver(assets, rules):
    rules = PortfolioConfig(**{"cost_bps": 20.0, **rules})
    imagination = perfect_market(2, 3, assets, drift=0.001)
    imagination.mean_BHN = imagination.mean_BHN * torch.tensor([1.0, 0.5, -0.5])[None, :, None]  # trades at every step
    world, space = world_of(imagination, rules)
    held = torch.softmax(2 * torch.randn(2, assets, generator=seeded(3)), -1)
    problem = quadratic_of(Objective(world), hedged=False)
    problem = replace(problem, held_BN=project_to_exposure(held.unsqueeze(1), space)[:, 0])
    best_B = torch.cat([by_interior_point(problem, space, invested) for invested in (False, True)])
    x_BHN, problem = solve(problem, space).flatten(0, 1), Quadratic.together([problem, problem])
    before_BHN = torch.cat([problem.held_BN.unsqueeze(1), x_BHN[:, :-1]], dim=1)
    risk_BH = torch.einsum("bhn,bhnm,bhm->bh", x_BHN, problem.covariance_BHNN, x_BHN)
    traded_BH = (problem.price_BHN * (x_BHN - before_BHN).abs()).sum(-1)
    reached_B = ((problem.mean_BHN * x_BHN).sum(-1) - risk_BH / 2 - traded_BH).sum(-1)
    assert (best_B - reached_B).max() < 1e-5 + 2e-3 * best_B.abs().max()


@pytest.mark.parametrize("allow_short", [False, True])
def test_positions_become_the_action_that_has_them(allow_short):
    present_BN = torch.tensor([[True, True, True, True, False]])
    space = ActionSpace(present_BN, 1, max_weight=0.5, allow_short=allow_short)
    for x in ([0.3, 0.0, 0.4, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]):
        x_BHN = torch.tensor([[x]])
        action = action_of_positions(x_BHN, space, 0.0)
        assert torch.allclose(action.positions(allow_short)[:, 0], x_BHN, atol=1e-6)
        assert action.weights_XN.sum().item() == pytest.approx(1)
        assert action.weights_XN.max() <= 0.5 + 1e-6
    if allow_short:
        x_BHN = torch.tensor([[[-0.3, 0.0, 0.4, 0.0, 0.0]]])
        assert torch.allclose(action_of_positions(x_BHN, space, 0.0).positions(True)[:, 0], x_BHN, atol=1e-6)
    nothing_flat = torch.tensor([[[0.1, 0.2, 0.1, 0.2, 0.0]]])
    action = action_of_positions(nothing_flat, space, 0.0)
    assert action.positions(allow_short).sum().item() == pytest.approx(1)  # no action holds this and cash


def test_the_qp_refuses_a_cost_that_it_cannot_solve():
    space = ActionSpace(torch.ones(1, 3, dtype=torch.bool), 1)
    with pytest.raises(FinJEPAError, match="mean-variance part"):
        make_planner("qp").plan(lambda actions: actions.weights_XN.sum((-1, -2)), space)


def test_the_qp_holds_cash_when_nothing_is_worth_holding_and_holds_on_when_trading_is_dear():
    imagination = perfect_market(3, 2, 8, drift=-0.02)
    world, space = world_of(imagination)
    plan = make_planner("qp").plan(Objective(world), space)
    assert plan.action.positions(False).abs().max() < 1e-3
    world, space = world_of(perfect_market(3, 2, 8), PortfolioConfig(cost_bps=500.0, allow_hedge=False))
    equal = PortfolioAction(torch.full((3, 8), 0.125), torch.ones(3, 8), torch.zeros(3))
    held, _ = world.simulator.trade(world.state, equal, world.moments.beta_BN, world.moments.present_BN)
    dear = replace(world, state=held)
    plan = make_planner("qp").plan(Objective(dear), space)
    assert dear.roll(plan.path.map(lambda x: x.unsqueeze(1))).turnover_BCH.max() < 0.02


def test_the_qp_hedges_when_the_market_is_expected_to_fall():
    config = PortfolioConfig(cost_bps=0.0)
    imagination = perfect_market(2, 2, 6, drift=0.0, dispersion=0.0)
    imagination.mean_BHN = imagination.mean_BHN + torch.tensor([0.02, -0.01])[:, None, None]
    imagination.mean_BHN = imagination.mean_BHN + 0.02 * torch.linspace(-1, 1, 6)  # there is something to hold
    world, space = world_of(imagination, config)
    plan = make_planner("qp").plan(Objective(world, parse_utility("log_growth - 5*variance")), space)
    assert plan.action.hedge_X.tolist() == [0.0, 1.0]
