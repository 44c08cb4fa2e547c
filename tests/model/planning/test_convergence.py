"""A decision depends on the data and not on a seed, and is never worse than a simpler one by the planner's own account."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finjepa_model.config import PortfolioConfig
from finjepa_model.planners import make_planner
from finjepa_model.planning.objective import Objective
from finjepa_model.planning.plan import action_of_positions, held
from finjepa_model.planning.utility import parse_utility
from finjepa_model.portfolio import PortfolioSimulator
from tests.model.planning.markets import perfect_market, seeded, world_of

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
