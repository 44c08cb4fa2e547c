"""Baselines see what they say they see, trade when they say, and agree with skfolio; strategies of the user stand beside them."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import skfolio.optimization as optimization
from handmade_panel import noise, write_panel
from handmade_setup import setup_of

from finjepa_model.errors import FinJEPAError
from finjepa_model.market_view import MarketView
from finjepa_pipeline.backtest import strategies
from finjepa_pipeline.backtest.engine import simulate
from finjepa_pipeline.backtest.strategies import (
    Strategy,
    baselines,
    complete_returns,
    equal_weights,
    extreme_quintile,
    kind,
    load_strategy,
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
    names = ("cem | log_growth/2", "cem | log_growth/2 with ewma", "equal_weight", "mine:decide@a1b2c3")
    assert [kind(name) for name in names] == ["planner", "control", "baseline", "user"]


SOURCE = """
import torch
from finjepa_model import PortfolioAction

def decide(view):
    n = len(view.assets)
    return PortfolioAction(torch.full((1, n), 1 / n, dtype=torch.float64), torch.ones(1, n), torch.zeros(1))

class Counting:
    def __init__(self):
        self.seen = 0
    def decide(self, view, state):
        self.seen += 1
        return decide(view)
"""


def test_a_callable_and_a_class_are_walked_like_anybody(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    setup = setup_of(write_panel(tmp_path / "panel", noise(120, 3)))
    one, two = (simulate(load_strategy(f"{file}:{name}"), setup) for name in ("decide", "Counting"))
    assert one.wealth_T[-1] == two.wealth_T[-1] != 1
    assert one.strategy.startswith("mine:decide@")
    file.write_text(SOURCE + "# tuned")
    assert load_strategy(f"{file}:decide").name != one.strategy


@pytest.mark.parametrize(
    "spec", ["nothing", "no_such_module_xyz:decide", "missing.py:decide", "finjepa_model:no_such_callable"]
)
def test_what_cannot_be_loaded_is_one_clear_line(spec):
    with pytest.raises(FinJEPAError, match="strategy"):
        load_strategy(spec)


@pytest.mark.parametrize(
    ("body", "line", "named"),
    [
        ("def decide(view):\n    return 1 / 0\n", 2, "ZeroDivisionError"),
        ("def decide(view):\n    import numpy\n    return numpy.linalg.inv(numpy.zeros((2, 2)))\n", 3, "LinAlgError"),
        ("def decide(view):\n    raise SystemExit(3)\n", 2, "SystemExit"),
        ("import no_such_package_xyz\n", 1, "no_such_package_xyz"),
        ("def decide(view):\n    return (\n", 2, "SyntaxError"),
        ("class decide:\n    def __init__(self):\n        self.x = self.y\n", 3, "AttributeError"),
    ],
)
def test_an_error_in_a_strategy_names_the_file_and_the_line_of_the_user(tmp_path, body, line, named):
    file = tmp_path / "mine.py"
    file.write_text(body)
    view = SimpleNamespace(date="2020-01-02")
    with pytest.raises(FinJEPAError, match=named) as failed:
        load_strategy(f"{file}:decide").decide(view, None)  # type: ignore[arg-type]
    assert f"{file}:{line}:" in str(failed.value)


def own(folder: Path, body: str) -> Strategy:
    (folder / "mine.py").write_text(
        f"import pandas as pd\nimport numpy as np\n\ndef decide(view):\n    return {body}\n"
    )
    return load_strategy(f"{folder}/mine.py:decide")


@pytest.mark.parametrize(
    ("body", "positions"),
    [
        ("{'A001': 0.5}", [0.0, 0.5, 0.0]),
        ("{'A000': 0.3, 'A001': 0.2, 'A002': 0.1}", [0.3, 0.2, 0.1]),  # and cash
        ("pd.Series([0.25, -0.75], ['A002', 'A000'])", [-0.75, 0.0, 0.25]),
        ("{}", [0.0, 0.0, 0.0]),
    ],
)
def test_shares_by_symbol_are_held_as_they_are(tmp_path, body, positions):
    view = setup_of(write_panel(tmp_path / "panel", noise(120, 3)), block=(100, 120)).views()[0]
    action = own(tmp_path, body).decide(view, None)  # type: ignore[arg-type]
    assert action is not None
    assert action.weights_XN.sum() == pytest.approx(1)
    np.testing.assert_allclose(action.positions(allow_short=True)[0], positions, atol=1e-12)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("[0.5, 0.5]", "returned list"),
        ("{'A01': 0.5}", "A01 cannot be traded then; is A001 meant"),
        ("{'A000': 0.8, 'A001': -0.7}", "add up to 1.5"),
        ("{'A000': np.nan}", "add up to nan"),
    ],
)
def test_what_cannot_be_held_is_one_line_with_the_place(tmp_path, body, why):
    view = setup_of(write_panel(tmp_path / "panel", noise(120, 3)), block=(100, 120)).views()[0]
    with pytest.raises(FinJEPAError, match=why) as refused:
        own(tmp_path, body).decide(view, None)  # type: ignore[arg-type]
    assert f"{tmp_path}/mine.py:4" in str(refused.value)


def test_the_example_is_a_strategy(tmp_path):
    setup = setup_of(write_panel(tmp_path, noise(160, 6) * np.linspace(0.5, 2, 6)), block=(100, 160))
    result = simulate(load_strategy(f"{Path(__file__).parents[3]}/examples/low_volatility.py:decide"), setup)
    held = result.weights_KR[0] * result.signals_KR[0]
    np.testing.assert_allclose(held, [1 / 3] * 3 + [0] * 3)


def test_outside_of_the_command_line_only_the_operators_folder_has_strategies(tmp_path, monkeypatch):
    monkeypatch.setattr(strategies, "_from_command_line", False)
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    for folder in (allowed, other):
        folder.mkdir()
        (folder / "mine.py").write_text("def decide(view): ...")
    (allowed / "link.py").symlink_to(other / "mine.py")
    own = f"{allowed}/mine.py:decide"
    foreign = [
        f"{other}/mine.py:decide",
        f"{allowed}/../other/mine.py:decide",
        f"{allowed}/link.py:decide",
        "os:system",
    ]
    for spec in (own, *foreign):
        with pytest.raises(FinJEPAError, match="FINJEPA_STRATEGIES"):
            strategies.refuse_untrusted([spec])
    monkeypatch.setenv("FINJEPA_STRATEGIES", str(allowed))
    strategies.refuse_untrusted([None, own])
    for spec in foreign:
        with pytest.raises(FinJEPAError, match="FINJEPA_STRATEGIES"):
            strategies.refuse_untrusted([spec])
    strategies.trust_command_line()
    strategies.refuse_untrusted(foreign)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    strategies.load_strategy(own)
    assert "HF_TOKEN" not in os.environ
