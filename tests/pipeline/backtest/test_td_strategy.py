"""The td branch through the door that users take: a strategy named `td | utility`, walked through a setup."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from handmade_panel import noise, write_panel
from handmade_setup import config_for, setup_over_test_block
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finjepa_model.errors import FinJEPAError
from finjepa_model.planners import PLANNERS
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.td.training import TDTrainer
from finjepa_model.world_model import FinJEPA
from finjepa_pipeline.backtest.blocks import parse_planners
from finjepa_pipeline.backtest.engine import simulate
from finjepa_pipeline.backtest.planner_strategies import FinJEPAStrategy, MarketImagination, strategy_name

DAYS, ASSETS = 900, 6


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A world model whose forecasts are random functions of what it sees, its briefly trained branch, and a setup."""
    folder = tmp_path_factory.mktemp("td")
    config = config_for(ASSETS)
    config = replace(config, td=replace(config.td, enabled=True, steps=60, dates=8, hidden=16, kept_states=256))
    panel = write_panel(folder / "panel", noise(DAYS, ASSETS))
    torch.manual_seed(0)
    model = FinJEPA(config)
    model.readout.set(0.1 * torch.randn_like(model.readout.weights_Z), 0.1, 1.0)
    TDTrainer(model, panel, folder / "run").train()
    model.save_pretrained(folder / "model")
    return folder / "model", setup_over_test_block(panel, config, 31)


def test_a_strategy_acts_on_the_utility_that_it_is_named_with(case):
    checkpoint, setup = case
    held = []
    # so short a training learns large differences only
    for utility in ("log_growth + 0.1*net", "log_growth - 500*variance"):
        (name,) = parse_planners("td", utility)
        strategy = FinJEPAStrategy(name, MarketImagination(checkpoint))
        result = simulate(strategy, setup)
        assert np.isfinite(result.net_T).all()
        assert len(strategy.expected) == len(setup.decisions)
        assert all(sum(expected.terms.values()) < np.inf for _, expected in strategy.expected)
        held.append(np.mean([expected.volatility for _, expected in strategy.expected]))
    assert held[1] < held[0]


def test_a_checkpoint_without_the_branch_says_how_to_get_one(case, tmp_path):
    checkpoint, setup = case
    config = FinJEPA.from_pretrained(checkpoint).config
    FinJEPA(replace(config, td=replace(config.td, enabled=False))).save_pretrained(tmp_path)
    with pytest.raises(FinJEPAError, match="--branch jepa,td"):
        simulate(FinJEPAStrategy("td", MarketImagination(tmp_path)), setup)


@pytest.mark.parametrize("planner", sorted(PLANNERS))
@given(aversion=st.floats(0.001, 10), reward=st.floats(0, 1))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_planner_hedges_an_empty_portfolio(case, planner, aversion, reward):
    """Even where a utility pays for the hedge."""
    checkpoint, setup = case
    name = strategy_name(planner, f"{reward:.4f}*hedge - {aversion:.4f}*gross - variance")
    view = setup.views()[0]
    state = PortfolioSimulator(setup.costs).start((1, ASSETS))
    action = FinJEPAStrategy(name, MarketImagination(checkpoint)).decide(view, state)
    assert action is not None
    long = float(action.positions(allow_short=False).sum())
    assert long > 1e-4 or float(action.hedge_X) == 0
