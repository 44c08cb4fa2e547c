"""Utilities order the behaviour of the td branch: the higher the price of risk or of trading, the less of it there is.

Shapes: Y portfolios, N assets.
"""

from dataclasses import replace

import pytest
import torch

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import FinJEPAConfig, TDConfig, TrainingConfig
from finjepa_model.data.panel import Panel
from finjepa_model.planners import make_planner
from finjepa_model.planning.objective import Objective, PlanningWorld
from finjepa_model.planning.plan import ActionSpace
from finjepa_model.planning.utility import parse_utility
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.td.networks import PolicyState
from finjepa_model.td.training import TDTrainer
from finjepa_model.training.behaviour import random_action
from finjepa_model.world_model import FinJEPA
from tests.model.markets import random_observation, small_config
from tests.model.training_runs import run_panel

SEED, ASSETS = 0, 6  # another seed may hold nothing at the middle price of risk (docs/results/td.md)
AVERSIONS = ("log_growth - 0.5*variance", "log_growth - 5*variance", "log_growth - 50*variance")
PRICES = ("log_growth - variance", "log_growth - variance - 0.003*turnover", "log_growth - variance - 0.03*turnover")


def _config(seed: int) -> FinJEPAConfig:
    small = small_config()
    return replace(
        small,
        model=replace(small.model, market_channels=("market",), stride=5),
        training=TrainingConfig(seed=seed, batch_size=8, n_assets=ASSETS),
        td=TDConfig(enabled=True, steps=200, dates=32, hidden=32, kept_states=512, evaluate_every=100),
    )


def _trained(seed: int, panel: Panel, folder) -> FinJEPA:
    """A world model whose forecasts are random functions of what it sees, and its branch."""
    torch.manual_seed(seed)
    model = FinJEPA(_config(seed))
    model.readout.set(0.1 * torch.randn_like(model.readout.weights_Z), 0.0, 1.0)
    model.readout.set(0.1 * torch.randn_like(model.readout.weights_Z), 0.1, 1.0)
    TDTrainer(model, panel, folder).train()
    return model


def _fresh_world(model: FinJEPA, seed: int) -> PlanningWorld:
    """Markets and portfolios that no training has seen."""
    config = model.config
    imagination = model.imagine(random_observation(config, dates=128, assets=ASSETS, seed=1000 + seed), 1)
    simulator = PortfolioSimulator(config.portfolio)
    state = simulator.start((128, ASSETS), dtype=torch.float32)
    torch.manual_seed(seed)
    held = random_action(imagination.present_BN, None, config.portfolio)
    state, _ = simulator.trade(state, held, imagination.beta_BN)
    state = replace(state, step_cost_X=0 * state.step_cost_X, step_turnover_X=0 * state.step_turnover_X)
    return PlanningWorld.of(imagination, simulator, state, config.model.stride)


def _measured(model: FinJEPA, world: PlanningWorld, utility: str, quantity: str) -> float:
    action: PortfolioAction = model.td.decide(world.imagination, world, model.td.infer(parse_utility(utility)))
    return float(PolicyState.of(world.imagination, world).quantities(action, (quantity,)).mean())


def _share_of_gain(model: FinJEPA, world: PlanningWorld, utility: str) -> float:
    objective = Objective(world, parse_utility(utility))
    space = ActionSpace.from_config(model.config.portfolio, world.imagination.present_BN, 1)
    equal = PortfolioAction(space.equal_weights()[:, None], torch.ones(128, 1, 1, ASSETS), torch.zeros(128, 1, 1))
    before, plans = objective(equal)[:, 0], [make_planner(name).plan(objective, space) for name in ("td", "qp")]
    learned, exact = ((before - plan.cost_B).mean() for plan in plans)
    return float(learned / exact)


@pytest.mark.slow
def test_utilities_order_the_behaviour_and_gain_over_equal_weights(tmp_path):
    """By the model's own account, and after costs. 1/N gains 0 and the QP, which is exact, 1."""
    panel = run_panel(tmp_path / "panel", 1200, ASSETS)
    model = _trained(SEED, panel, tmp_path / "run")
    world = _fresh_world(model, SEED)
    volatility = [_measured(model, world, utility, "volatility") for utility in AVERSIONS]
    turnover = [_measured(model, world, utility, "turnover") for utility in PRICES]
    assert volatility[0] > volatility[1] > volatility[2], volatility
    assert volatility[2] < 0.5 * volatility[0]
    assert turnover[0] > turnover[1] > turnover[2], turnover
    assert turnover[2] < 0.9 * turnover[0]
    shares = [_share_of_gain(model, world, utility) for utility in AVERSIONS]
    assert min(shares) > 0.1, shares
