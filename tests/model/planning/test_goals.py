"""Goals that a utility names: a plan goes where it is told, and a goal from data is one that was known."""

import pytest
import torch

from finjepa_model.config import PortfolioConfig
from finjepa_model.errors import FinJEPAError
from finjepa_model.planners import make_planner
from finjepa_model.planning.goals import target_latent
from finjepa_model.planning.objective import Objective, PlanningWorld, quantities
from finjepa_model.planning.utility import parse_goal, parse_utility
from finjepa_model.portfolio import SCALARS, PortfolioSimulator
from finjepa_model.training.goal_library import GoalLibrary, best_realised
from tests.model.planning.markets import FREE, perfect_market, seeded, world_of


def planned(goal, dates=4, assets=8):
    """Quantities of the first step of a plan that is drawn to a goal."""
    imagination = perfect_market(dates, 1, assets)
    _, space = world_of(imagination)
    simulator, target = PortfolioSimulator(FREE), parse_goal(goal)
    assert target is not None
    latent_BD = target_latent(imagination, simulator, 5, target)
    start = simulator.start((dates, assets))
    world = PlanningWorld.of(imagination, simulator, start, 5, goals={goal: latent_BD})
    planner = make_planner("cem", samples=300, iterations=20)
    plan = planner.plan(Objective(world, parse_utility(f"-{goal}")), space, None, seeded())
    rollout = world.roll(plan.path.map(lambda x: x.unsqueeze(1)))
    return {name: value_BCH[:, 0, 0] for name, value_BCH in quantities(world, rollout, ["gross", "volatility"]).items()}


@pytest.mark.parametrize("exposure", [0.3, 0.6, 0.9])
def test_a_goal_of_low_exposure_leads_to_low_exposure(exposure):
    assert (planned(f"goal(exposure={exposure})")["gross"] - exposure).abs().max() < 0.1


def test_a_goal_of_low_volatility_leads_to_low_volatility():
    wild, calm = (planned(f"goal(volatility={v})")["volatility"] * (252 / 5) ** 0.5 for v in (0.25, 0.08))
    assert (calm < 0.09).all()
    assert (wild > calm + 0.03).all()


def test_growth_drawdown_and_hedge_of_a_goal_are_what_the_latent_says():
    imagination, seen = perfect_market(2, 1, 5), []
    imagination.encode_portfolio = lambda holdings, signals, scalars: seen.append(scalars) or holdings  # type: ignore[method-assign]
    target = parse_goal("goal(growth=0.252,drawdown=0.1,hedge=1)")
    assert target is not None
    target_latent(imagination, PortfolioSimulator(PortfolioConfig()), 5, target)
    named = dict(zip(SCALARS, seen[0][0, 0].tolist(), strict=True))
    assert named["drawdown"] == pytest.approx(-1.0)  # ten times the share
    assert named["step_return"] == pytest.approx(10 * 0.252 * 5 / 252)
    assert named["hedge"] < 0
    assert named["beta"] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        ("goal()", "write it like"),
        ("goal(0.3)", "write it like"),
        ("goal(wealth=2)", "volatility, exposure, growth, drawdown, hedge"),
        ("goal(exposure=a)", "exposure=a"),
        ("goal(exposure=-1)", "exposure=-1 must be positive"),
        ("goal(drawdown=1.5)", "drawdown=1.5"),
        ("goal(hedge=0.5)", "hedge=0.5"),
    ],
)
def test_an_impossible_goal_is_refused_by_name(goal, said):
    with pytest.raises(FinJEPAError, match=said.replace("(", r"\(")):
        parse_utility(f"log_growth - {goal}")


def test_a_library_knows_only_what_was_known_and_looks_for_a_like_market():
    markets_LD = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0]])
    library = GoalLibrary(markets_LD, torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([10, 20, 30]))
    here_BD = torch.zeros(1, 2)
    assert library.nearest(here_BD, session=40, dates=2).item() == 2
    assert library.nearest(here_BD, session=10, dates=2).item() == 1
    assert library.nearest(torch.tensor([[5.0, 0.0]]), session=29, dates=1).item() == 3  # 30 is not known yet
    with pytest.raises(FinJEPAError, match="no training date"):
        library.nearest(here_BD, session=9)


def test_the_best_realised_are_averaged():
    latents_BKD = torch.arange(20.0).view(1, 20, 1)
    assert best_realised(latents_BKD, utility_BK=torch.arange(20.0)[None]).item() == 18.5
