"""A planner and a utility as a strategy on a panel: goals, limits, disagreement, delistings, the td branch; its controls."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from handmade_panel import noise, write_panel
from handmade_setup import config_for, setup_of, setup_over_test_block, write_lineage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finjepa_model import FinJEPA
from finjepa_model.errors import FinJEPAError
from finjepa_model.planner_strategies import FinJEPAStrategy, MarketImagination, strategy_name
from finjepa_model.planners import PLANNERS
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.td.training import TDTrainer
from finjepa_pipeline.backtest.blocks import StrategiesConfig, parse_planners
from finjepa_pipeline.backtest.controls import Controls, one_factor, shrunk_sample
from finjepa_pipeline.backtest.engine import simulate
from tests.model.test_risk import market

DAYS, ASSETS = 900, 6


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A panel, an untrained checkpoint that fits it and wants to be invested, and a setup over the test block."""
    folder, config = tmp_path_factory.mktemp("case"), config_for(ASSETS)
    panel = write_panel(folder / "panel", 2 * market()[0][:DAYS, :ASSETS])
    torch.manual_seed(0)
    model = FinJEPA(config)
    model.readout.level.fill_(0.5)
    model.save_pretrained(folder / "model")
    write_lineage(folder / "model", config, panel)
    return panel, folder / "model", setup_over_test_block(panel, config, 26)


def test_a_strategy_is_drawn_to_the_goal_that_its_utility_names(case):
    _, checkpoint, setup = case
    name = strategy_name("cem", "-goal(volatility=0.1, drawdown=0.05)")
    strategy = FinJEPAStrategy(name, MarketImagination(checkpoint))
    assert np.isfinite(simulate(strategy, setup).net_T).all()
    [(_, expected), *_] = strategy.expected
    assert list(expected.terms) == ["-goal(volatility=0.1,drawdown=0.05)"]


def test_a_utility_prices_the_disagreement_of_checkpoints_that_it_names(case):
    """Another checkpoint of the home makes an ensemble; the dearer its disagreement, the less of it a plan keeps."""
    _, checkpoint, setup = case
    torch.manual_seed(1)
    other = FinJEPA(FinJEPA.from_pretrained(checkpoint).config)
    weights_Z = 50 * torch.randn_like(
        other.readout.weights_Z
    )  # not fitted, they would agree; the assets differ by little
    other.readout.set(weights_Z, 0.0, 1.0)
    other.save_pretrained(checkpoint.parent / "4e70other")
    kept = []
    for price in (0, 500):
        name = strategy_name("cem", f"log_growth + gross - {price}*disagreement('4e70other')")
        strategy = FinJEPAStrategy(name, MarketImagination(checkpoint))
        view = setup.views()[0]
        plan = strategy.plan(view, PortfolioSimulator(setup.costs).start((1, ASSETS)))
        means_KN = np.stack([member.at(view).mean_BHN[0, 0].numpy() for member in strategy._imagination.members])
        kept.append((means_KN @ plan.action.positions(False)[0].numpy()).std())
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize("said", ["disagreement()", "disagreement(5)", "disagreement('a', b)"])
def test_a_disagreement_with_nobody_is_refused(said):
    with pytest.raises(FinJEPAError, match="name the other checkpoints"):
        strategy_name("mppi", f"log_growth - {said}")


def test_a_checkpoint_that_is_not_there_is_named(case):
    with pytest.raises(FinJEPAError, match="nobody-has-this"):
        FinJEPAStrategy("mppi | log_growth - disagreement('nobody-has-this')", MarketImagination(case[1]))


@pytest.mark.parametrize(
    "limit", ["net >= 3", "cash <= -1", "short >= 0.2", "log_growth >= 1", "gross >= 0.9, cash >= 0.9"]
)
def test_a_limit_that_no_portfolio_keeps_is_refused_with_its_name(case, limit):
    _, checkpoint, setup = case
    strategy = FinJEPAStrategy(strategy_name("mppi", f"log_growth - variance, {limit}"), MarketImagination(checkpoint))
    with pytest.raises(FinJEPAError, match="no portfolio that keeps the limit"):
        simulate(strategy, setup)


def test_no_trade_without_reason(case):
    """After the first decision there are orders only where they pay for their costs by the model's own account."""
    panel, checkpoint, _ = case
    setup, orders = setup_over_test_block(panel, MarketImagination(checkpoint).config, 60), {}
    for cost_bps in (0.0, 200.0):
        imagination = MarketImagination(checkpoint)
        costs = replace(imagination.config.portfolio, cost_bps=cost_bps)
        imagination.config = replace(imagination.config, portfolio=costs)
        imagination.simulator = PortfolioSimulator(costs)
        strategy = FinJEPAStrategy("qp", imagination)
        result = simulate(strategy, replace(setup, costs=costs))
        orders[cost_bps] = result.ordered_K
        assert len(strategy.expected) == len(result.ordered_K)
        assert (strategy.held == "") == result.ordered_K[-1]
    assert orders[0.0].all()
    assert orders[200.0][0]
    assert not orders[200.0][1:].any()
    assert "no reason to trade" in strategy.held


def test_a_forecast_that_is_not_finite_is_refused_with_the_name_of_its_asset(case):
    _, checkpoint, setup = case
    imagination = MarketImagination(checkpoint)
    imagination.model.readout.weights_Z.fill_(3e38)  # finite, and sums of it are not
    with pytest.raises(FinJEPAError, match="forecast of A"):
        simulate(FinJEPAStrategy("qp", imagination), setup)


def test_every_planner_lives_through_an_asset_that_is_delisted_tomorrow(case, tmp_path):
    """It may be bought at its last close; then it is liquidated, and no later decision holds it."""
    _, checkpoint, setup = case
    first, alive_DA = setup.decisions[0], np.ones((DAYS, ASSETS), bool)
    alive_DA[first + 2 :, 2] = False
    panel = write_panel(tmp_path, noise(DAYS, ASSETS), alive_DA=alive_DA, delisting_return_A=np.full(ASSETS, -0.3))
    ending = setup_of(panel, setup.costs, (first, first + 16), window=setup.window)
    imagination = MarketImagination(checkpoint)
    for planner in ("cem", "mppi", "gradient", "qp", "random"):
        result = simulate(FinJEPAStrategy(planner, imagination), ending)
        assert np.isfinite(result.net_T).all()
        assert (result.held_KR[:, 2] == 0).all()
        assert (result.weights_KR[1:, 2] == 0).all()


@pytest.fixture(scope="module")
def td(tmp_path_factory):
    """A checkpoint whose forecasts are random functions of what it sees, with a briefly trained td branch, and a setup."""
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


def test_a_strategy_acts_on_the_utility_that_it_is_named_with(td):
    checkpoint, setup = td
    held = []
    for utility in ("log_growth + 0.1*net", "log_growth - 500*variance"):
        (name,) = parse_planners("td", utility)
        strategy = FinJEPAStrategy(name, MarketImagination(checkpoint))
        result = simulate(strategy, setup)
        assert np.isfinite(result.net_T).all()
        assert len(strategy.expected) == len(setup.decisions)
        assert all(sum(expected.terms.values()) < np.inf for _, expected in strategy.expected)
        held.append(np.mean([expected.volatility for _, expected in strategy.expected]))
    assert held[1] < held[0]


def test_a_checkpoint_without_the_branch_says_how_to_get_one(td, tmp_path):
    checkpoint, setup = td
    config = FinJEPA.from_pretrained(checkpoint).config
    FinJEPA(replace(config, td=replace(config.td, enabled=False))).save_pretrained(tmp_path)
    with pytest.raises(FinJEPAError, match="--branch jepa,td"):
        simulate(FinJEPAStrategy("td", MarketImagination(tmp_path)), setup)


@pytest.mark.parametrize("planner", sorted(PLANNERS))
@given(aversion=st.floats(0.001, 10), reward=st.floats(0, 1))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_planner_hedges_an_empty_portfolio(td, planner, aversion, reward):
    """Even where a utility pays for the hedge."""
    checkpoint, setup = td
    name = strategy_name(planner, f"{reward:.4f}*hedge - {aversion:.4f}*gross - variance")
    view = setup.views()[0]
    state = PortfolioSimulator(setup.costs).start((1, ASSETS))
    action = FinJEPAStrategy(name, MarketImagination(checkpoint)).decide(view, state)
    assert action is not None
    long = float(action.positions(allow_short=False).sum())
    assert long > 1e-4 or float(action.hedge_X) == 0


DAYS, ASSETS = 900, 6


def test_every_planner_has_its_controls_and_one_that_looks_at_latents_only_those_with_a_model():
    config = StrategiesConfig(planner="qp,cem", controls="untrained,ewma,ledoit_wolf,shuffled_actions")
    tested = [name for name in config.tested("test") if " with " in name]
    of_qp = [f"qp with {control}" for control in ("untrained", "ewma", "ledoit_wolf", "shuffled_actions")]
    assert tested == [*of_qp, "cem with untrained", "cem with shuffled_actions"]
    assert not any(" with " in name for name in config.tested("validation"))


@pytest.fixture(scope="module")
def controls(case) -> Controls:
    return Controls(MarketImagination(case[1]))


def test_a_control_keeps_the_expected_returns_and_replaces_the_risk(case, controls):
    setup = case[2]
    view, model = setup.views()[0], controls.imagination
    own = model.at(view)
    risks = {"ewma": one_factor, "ledoit_wolf": shrunk_sample}
    for name, covariance in risks.items():
        imagined = controls.make(f"qp with {name}")._imagination.at(view)
        assert torch.equal(imagined.mean_BHN, own.mean_BHN)
        assert imagined.covariance_BHMM.shape == own.covariance_BHMM.shape
        assert torch.equal(imagined.covariance_BHMM, covariance(view, model.config.model.stride))
        ratio = imagined.covariance_BHMM.diagonal(dim1=2, dim2=3) / own.covariance_BHMM.diagonal(dim1=2, dim2=3)
        assert 0.2 < float(ratio.min()) < float(ratio.max()) < 5  # the same unit
    untrained = controls.make("qp with untrained")._imagination
    torch.testing.assert_close(untrained.at(view).mean_BHN, own.mean_BHN)  # its level is the trained one's


def test_every_control_trades_and_shuffled_actions_are_no_dearer_than_the_planner(case, controls):
    setup, held, turnover = case[2], {}, {}
    for name in ("untrained", "ewma", "ledoit_wolf", "shuffled_actions"):
        result = simulate(controls.make(f"qp with {name}"), setup)
        assert result.strategy == f"qp with {name}"
        held[name], turnover[name] = result.held_KR[0], result.turnover_T.sum()
        assert np.abs(held[name]).sum() > 0.5
    assert np.abs(held["ewma"] - held["ledoit_wolf"]).sum() > 0.01
    planned = simulate(FinJEPAStrategy("qp", controls.imagination), setup)
    assert np.abs(held["shuffled_actions"] - planned.held_KR[0]).sum() > 0.01
    assert turnover["shuffled_actions"] < 1.3 * planned.turnover_T.sum()
