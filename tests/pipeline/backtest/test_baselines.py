"""The rules beside which a model is judged: they see what they say they see, trade when they say, and agree with skfolio."""

import numpy as np
import pytest
import skfolio.optimization as optimization
from handmade_panel import noise, write_panel
from handmade_setup import setup_of

from finjepa_pipeline.backtest.engine import simulate
from finjepa_pipeline.backtest.market_view import MarketView
from finjepa_pipeline.backtest.strategies import (
    baselines,
    complete_returns,
    equal_weights,
    extreme_quintile,
    kind,
    monthly,
)


def by_name(name: str):
    return next(strategy for strategy in baselines() if strategy.name == name)


def weights(name: str, view: MarketView) -> np.ndarray:
    action = by_name(name).decide(view, None)
    assert action is not None
    return action.weights_XN[0].numpy()


@pytest.fixture
def view(tmp_path) -> MarketView:
    returns_DA = noise(700, 5, seed=7) * np.array([1.0, 2.0, 4.0, 1.0, 1.5])
    return MarketView(write_panel(tmp_path, returns_DA), 600, np.arange(5), window=20)


@pytest.mark.parametrize(
    ("name", "estimator"),
    [
        ("inverse_volatility", "InverseVolatility"),
        ("hierarchical_risk_parity", "HierarchicalRiskParity"),
        ("risk_parity", "RiskBudgeting"),
        ("max_diversification", "MaximumDiversification"),
    ],
)
def test_a_fitted_rule_is_skfolios_on_the_trailing_window(view, name, estimator):
    fitted = getattr(optimization, estimator)().fit(view.returns(504)[0])
    np.testing.assert_allclose(weights(name, view), fitted.weights_, atol=1e-6)


def test_minimum_variance_has_less_variance_than_any_other(view):
    covariance_NN = np.cov(view.returns(504)[0], rowvar=False)
    risk = {name: weights(name, view) @ covariance_NN @ weights(name, view) for name in (s.name for s in baselines())}
    risk.pop("cash")
    assert min(risk, key=risk.__getitem__) == "min_variance"


def test_assets_with_a_gap_are_left_out_and_a_shorter_window_is_taken(tmp_path):
    alive_DA = np.ones((700, 4), bool)
    alive_DA[:500, :3] = False
    panel = write_panel(tmp_path, noise(700, 4), alive_DA=alive_DA)
    view = MarketView(panel, 600, np.arange(4), window=20)
    returns_TV, complete_N = complete_returns(view)
    assert returns_TV.shape == (63, 4)
    assert complete_N.all()
    assert not np.isnan(weights("min_variance", view)).any()


def test_momentum_buys_what_rose_and_reversal_what_fell(tmp_path):
    returns_DA = np.zeros((400, 10))
    returns_DA[250:300, 3] = 0.01  # rose within the year before session 350, not within its last 21 sessions
    returns_DA[345:351, 6] = -0.02
    view = MarketView(write_panel(tmp_path, returns_DA), 350, np.arange(10), window=20)
    assert weights("momentum_252_21", view)[3] == weights("momentum_252_21", view).max() == 0.5
    assert extreme_quintile(view, 60)[3] == 1
    assert weights("reversal_5", view)[6] == 0.5


def test_a_monthly_rule_orders_once_a_month(tmp_path):
    panel = write_panel(tmp_path, noise(200, 3, seed=2))
    setup = setup_of(panel)
    result = simulate(monthly("monthly", equal_weights), setup)
    months = np.unique(setup.panel.dates[list(setup.decisions)].astype("datetime64[M]"))
    assert (result.turnover_T > 0).sum() == len(months)


def test_every_baseline_walks_over_the_same_sessions(tmp_path):
    setup = setup_of(write_panel(tmp_path, noise(320, 5)), block=(260, 320))
    results = [simulate(strategy, setup) for strategy in baselines()]
    assert len({result.strategy for result in results}) == len(results) >= 14
    for result in results:
        np.testing.assert_array_equal(result.dates_T, results[0].dates_T)
        assert kind(result.strategy) == "baseline"


def test_nobody_but_a_planner_is_taken_for_one():
    names = ("cem", "ridge", "equal_weight", "mine:decide@a1b2c3")
    assert [kind(name) for name in names] == ["planner", "control", "baseline", "user"]
