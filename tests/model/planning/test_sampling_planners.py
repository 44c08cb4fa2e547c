"""Planners on costs of which the answer is known: it depends on the data and not on a seed, and nothing simpler is better."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finjepa_model.config import PortfolioConfig
from finjepa_model.errors import FinJEPAError
from finjepa_model.planners import make_planner
from finjepa_model.planning.objective import Objective
from finjepa_model.planning.plan import ActionSpace, action_of_positions, held, project_to_simplex
from finjepa_model.planning.search import MPPIPlanner, effective_samples, mppi_weights
from finjepa_model.planning.utility import parse_utility
from finjepa_model.portfolio import PortfolioSimulator
from tests.model.planning.markets import perfect_market, seeded, world_of

BOTH = pytest.mark.parametrize("name", ["cem", "mppi"])
ALL = pytest.mark.parametrize("name", ["cem", "mppi", "gradient"])  # qp needs a cost with a mean-variance part
SEARCH = {"cem": {"samples": 200, "iterations": 20}, "mppi": {"samples": 200, "iterations": 20}}
SEARCH["gradient"] = {"iterations": 200}


def distance_to(target_HN):
    """A dummy quadratic cost: squared distance of the weights, summed over steps."""
    return lambda actions: (actions.weights_XN - target_HN).square().sum((-1, -2))


def space_of(dates=2, horizon=5, assets=3, **rules):
    return ActionSpace(torch.ones(dates, assets, dtype=torch.bool), horizon, **rules)


@ALL
def test_an_optimum_is_found_and_one_outside_the_bounds_at_its_projection(name):
    inside_HN = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.4, 0], [0.6, 0.4, 0], [1 / 3, 1 / 3, 1 / 3], [0, 0.4, 0.6]])
    space, planner = space_of(max_weight=0.6), make_planner(name, **SEARCH.get(name, {}))
    for target_HN, error in ((inside_HN, 1e-4), (2 * torch.randn(5, 3, generator=seeded(1)), 1e-3)):
        plan = planner.plan(distance_to(target_HN), space, None, seeded())
        nearest_HN = project_to_simplex(target_HN, torch.ones(5, 3, dtype=torch.bool), 0.6)
        assert (plan.path.weights_XN - nearest_HN).square().sum((-1, -2)).max() < error


@BOTH
def test_best_sequence_of_signals_is_found(name):
    best_HN = torch.tensor([[1.0], [-1.0], [0.0], [-1.0], [1.0]])

    def misses(actions):
        return (actions.signals_XN != best_HN).float().sum((-1, -2)) + (actions.hedge_X != 1).float().sum(-1)

    plan = make_planner(name).plan(misses, space_of(1, 5, 1, allow_short=True), None, seeded())
    assert torch.equal(plan.path.signals_XN[0], best_HN)
    assert plan.path.hedge_X.min() == 1


def test_mppi_weights_divide_by_the_temperature():
    cost_BC = torch.linspace(0, 10, 20, dtype=torch.float64).unsqueeze(0)
    assert effective_samples(mppi_weights(cost_BC, 0.5)).item() == pytest.approx(2.07, abs=0.005)
    assert effective_samples(mppi_weights(cost_BC, 1 / 0.5)).item() == pytest.approx(7.57, abs=0.1)  # the other reading
    assert torch.allclose(mppi_weights(cost_BC + 123, 0.5), mppi_weights(cost_BC, 0.5))
    assert mppi_weights(cost_BC, 1e-4)[0, 0] == 1
    assert torch.allclose(mppi_weights(cost_BC, 1e9), torch.full_like(cost_BC, 1 / 20))


def test_mppi_keeps_its_effective_sample_size_in_the_band():
    target_HN = torch.tensor([[0.2, 0.3, 0.5]])
    for temperature in (0.002, 0.2, 20.0):
        planner = MPPIPlanner(temperature=temperature, effective_band=(0.1, 0.3))
        plan = planner.plan(distance_to(target_HN), space_of(), None, seeded())
        share_IB = plan.effective_samples_IB / planner.samples
        assert (share_IB > 0.09).all()
        assert (share_IB < 0.31).all()


@ALL
def test_a_date_gets_the_same_plan_alone_and_in_a_batch(name):
    target_BHN = torch.softmax(torch.randn(6, 2, 4, generator=seeded(3)), -1)

    def cost_of(dates):
        return lambda actions: (actions.weights_XN - target_BHN[dates].unsqueeze(1)).square().sum((-1, -2))

    together = make_planner(name).plan(cost_of(slice(0, 6)), space_of(6, 2, 4), None, seeded())
    alone = make_planner(name).plan(cost_of(slice(4, 5)), space_of(1, 2, 4), None, seeded())
    assert torch.allclose(together.path.weights_XN[4:5], alone.path.weights_XN, atol=1e-5)


@ALL
@pytest.mark.parametrize("rules", [{}, {"max_weight": 0.3}, {"allow_short": True}, {"allow_hedge": False}])
def test_no_candidate_ever_breaks_a_constraint(name, rules):
    present_BN = torch.tensor([[True] * 6 + [False] * 2, [False] * 3 + [True] * 5])
    space = ActionSpace(present_BN, 2, **rules)
    noise = torch.randn(2, 2, 8, generator=seeded(4))
    allowed = {-1.0, 0.0, 1.0} if space.allow_short else {0.0, 1.0}

    def cost(actions):
        assert (actions.weights_XN.sum(-1) - 1).abs().max() < 1e-6
        assert actions.weights_XN.min() >= 0
        assert actions.weights_XN.max() <= space.max_weight + 1e-6
        assert (actions.weights_XN * ~present_BN[:, None, None]).abs().max() == 0
        relaxed = actions.signals_XN.requires_grad  # for its slope; what is put on record is rounded
        assert relaxed or set(actions.signals_XN.unique().tolist()) <= allowed
        assert actions.signals_XN.abs().max() <= 1
        assert actions.signals_XN.min() >= (-1 if space.allow_short else 0)
        assert actions.hedge_X.max() <= float(space.allow_hedge)
        return (actions.weights_XN * actions.signals_XN * noise.unsqueeze(1)).sum((-1, -2)) + actions.hedge_X.sum(-1)

    planner = make_planner(name)
    plan = planner.plan(cost, space, None, seeded())
    again = planner.plan(cost, space, plan, seeded(1))
    for path in (plan.path, again.path):
        assert set(path.signals_XN.unique().tolist()) <= allowed
        assert set(path.hedge_X.unique().tolist()) <= {0.0, float(space.allow_hedge)}


@ALL
def test_costs_that_are_not_numbers_count_as_worst(name):
    def cost(actions):
        cost_BC = (actions.weights_XN - 1 / 3).square().sum((-1, -2))
        return torch.where(actions.weights_XN[..., 0, 0] > 1 / 3, torch.nan, cost_BC)

    plan = make_planner(name).plan(cost, space_of(), None, seeded())
    assert plan.cost_B.isfinite().all()
    assert (plan.path.weights_XN[:, 0, 0] <= 1 / 3 + 1e-6).all()
    with pytest.raises(FinJEPAError, match="no plan has a finite cost"):
        make_planner(name).plan(lambda a: torch.full(a.hedge_X.shape[:2], torch.nan), space_of(), None, seeded())


@BOTH
def test_warm_start_shifts_the_plan_and_saves_iterations(name):
    targets_HN = torch.softmax(4 * torch.randn(5, 12, generator=seeded(5)), -1)
    space = space_of(1, 4, 12)
    before = make_planner(name, iterations=20).plan(distance_to(targets_HN[:4]), space, None, seeded())
    assert torch.equal(before.shifted().weights_XN[:, 0], before.path.weights_XN[:, 1])
    warm = make_planner(name, iterations=3).plan(distance_to(targets_HN[1:]), space, before, seeded())
    cold = make_planner(name, iterations=3).plan(distance_to(targets_HN[1:]), space, None, seeded())
    assert warm.cost_IB[0].item() < 0.7 * cold.cost_IB[0].item()
    with pytest.raises(FinJEPAError, match="start without it"):
        make_planner(name).plan(distance_to(targets_HN[1:]), space_of(2, 4, 12), before, seeded())


SEARCHES = ("cem", "mppi", "gradient")


def held_world(seed: int, assets: int, shorts: bool, hedge: bool):
    """A market, and portfolios that hold something in it: 1/N on one date, two assets on the other."""
    config = PortfolioConfig(allow_short=shorts, allow_hedge=hedge, borrow_rate=0.02)
    world, space = world_of(perfect_market(2, 2, assets, seed), config)
    x_BHN = torch.zeros(2, 2, assets)
    x_BHN[0], x_BHN[1, :, :2] = 1 / assets, 0.4
    action = action_of_positions(x_BHN, space, 0.0).map(lambda x: x[:, 0, 0].double())
    everyone = torch.ones(2, assets, dtype=torch.bool)
    start = PortfolioSimulator(config).start((2, assets))
    state, _ = PortfolioSimulator(config).trade(start, action, world.moments.beta_BN.double(), everyone)
    return replace(world, state=state.map(lambda x: x.float())), space


@given(
    st.sampled_from(SEARCHES),
    st.integers(0, 500),
    st.integers(3, 12),
    st.booleans(),
    st.sampled_from(
        ["log_growth - 2.5*variance", "log_growth - 5*variance - 0.002*turnover", "log_growth - cvar - 0.1*drawdown",
         "log_growth - 2.5*variance, gross <= 0.7"]
    ),
)  # fmt: skip
def test_a_plan_is_never_worse_than_the_qp_holding_and_equal_weights(name, seed, assets, hedge, text):
    world, space = held_world(seed, assets, False, hedge)
    cost = Objective(world, parse_utility(text))
    held_BHN = world.state.holdings_XN.unsqueeze(1).expand(-1, 2, -1)
    simple = [cost(action_of_positions(x_BHN, space, 0.0)) for x_BHN in (held_BHN, space.equal_weights(), 0 * held_BHN)]
    if cost.utility.slopes(("log_growth", "variance", "turnover", "cost")) is not None:
        simple.append(make_planner("qp").plan(cost, space).cost_B.unsqueeze(1))
    plan = make_planner(name, iterations=3).plan(cost, space, None, seeded(seed))
    assert (plan.cost_B.unsqueeze(1) <= torch.cat(simple, 1) + 1e-6).all()


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize(
    ("text", "shorts", "most"),
    [
        ("log_growth - 2.5*variance", False, 0.01),
        ("log_growth - 5*variance - 0.002*turnover", False, 0.01),
        ("log_growth - 2.5*variance", True, 0.01),
        ("log_growth - 5*variance - 0.002*turnover, gross <= 0.8", False, 0.01),
        ("log_growth - 2.5*variance, short >= 0.2", True, 0.02),
    ],
)
def test_seeds_decide_alike_where_there_is_one_optimum(name, text, shorts, most):
    world, space = held_world(7, 12, shorts, False)
    cost = Objective(world, parse_utility(text))
    found = [held(make_planner(name).plan(cost, space, None, seeded(seed)).action) for seed in range(3)]
    assert max(0.5 * float((one - found[0]).abs().sum(-1).max()) for one in found) <= most


@pytest.mark.parametrize("name", SEARCHES)
def test_another_order_of_the_assets_is_the_same_decision_in_that_order(name):
    world, space = held_world(3, 9, False, False)
    order = torch.randperm(9, generator=seeded(1))
    market = world.imagination
    mixed_M = torch.cat([order, torch.tensor([9])])
    mixed = replace(
        market,
        mean_BHN=market.mean_BHN[..., order],
        covariance_BHMM=market.covariance_BHMM[..., mixed_M, :][..., mixed_M],
        beta_BN=market.beta_BN[:, order],
    )
    other, _ = world_of(mixed, world.simulator.config)
    names = ("positions_XN", "signals_XN")
    state = replace(world.state, **{name: getattr(world.state, name)[:, order] for name in names})
    other = replace(other, state=state)
    utility = parse_utility("log_growth - 2.5*variance")
    plans = [make_planner(name).plan(Objective(one, utility), space, None, seeded()) for one in (world, other)]
    assert 0.5 * float((held(plans[0].action)[:, order] - held(plans[1].action)[:, :-1]).abs().sum(-1).max()) <= 0.01


@pytest.mark.parametrize("name", ["qp", "cem"])
def test_a_plan_says_that_another_portfolio_costs_the_same(name):
    """Without volatility and returns every portfolio is worth the same; with them none is."""
    world, space = held_world(3, 4, False, False)
    tied = make_planner(name).plan(Objective(world, parse_utility("0*turnover - 0*variance")), space, None, seeded())
    clear = make_planner(name).plan(Objective(world, parse_utility("log_growth - 5*variance")), space, None, seeded())
    assert tied.tied_B.all()
    assert not clear.tied_B.any()
