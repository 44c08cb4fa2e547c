"""What was decided is traded again to the cent, and a part that is switched off earns nothing."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from handmade_panel import noise, write_panel

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_pipeline.backtest.engine import COST_GRID, BacktestSetup, replayed, simulate
from finjepa_pipeline.backtest.strategies import EveryDecision, buy_and_hold, extreme_quintile, monthly, one_over_n


class Erratic:
    """Random weights and signals, a hedge now and then, and no order in one decision of four."""

    name = "erratic"

    def __init__(self, seed: int = 0):
        self.random = np.random.default_rng(seed)

    def decide(self, view, state):
        if self.random.random() < 0.25:
            return None
        weights_N = self.random.dirichlet(np.ones(len(view.present_N)))
        signals_N = self.random.integers(-1, 2, len(weights_N)).astype(float)
        hedge = torch.tensor([float(self.random.random() < 0.5)], dtype=torch.float64)
        return PortfolioAction(torch.from_numpy(weights_N)[None], torch.from_numpy(signals_N)[None], hedge)


@pytest.fixture
def setup(tmp_path) -> BacktestSetup:
    n_days, n_assets = 260, 5
    alive_DA = np.ones((n_days, n_assets), bool)
    alive_DA[150:, 4] = False
    tradable_DA = np.random.default_rng(3).random((n_days, n_assets)) > 0.1
    panel = write_panel(tmp_path, noise(n_days, n_assets, seed=1), alive_DA=alive_DA, tradable_DA=tradable_DA)
    return BacktestSetup.over(panel, (30, n_days), PortfolioConfig(allow_short=True), stride=5, n_assets=4, window=20)


def strategies():
    return [
        one_over_n(),
        buy_and_hold(),
        Erratic(),
        monthly("momentum", lambda view: extreme_quintile(view, 60)),
        EveryDecision("reversal", lambda view: extreme_quintile(view, 5, losers=True)),
    ]


def stacked(results) -> dict[str, np.ndarray]:
    """Returns_TK by replay."""
    return {name: np.column_stack([one.replays[name] for one in results]) for name in results[0].replays}


def test_decisions_replayed_at_many_costs_are_the_simulations_at_these_costs(setup):
    """All strategies and levels side by side are what each is alone."""
    again = replayed([simulate(strategy, setup) for strategy in strategies()], setup)
    for bps in COST_GRID:
        dearer = replace(setup, costs=replace(setup.costs, cost_bps=bps))
        for one, strategy in zip(again, strategies(), strict=True):
            net_T = simulate(strategy, dearer).net_T
            np.testing.assert_allclose(one.replays[f"cost_{bps:g}"], net_T, atol=1e-12, err_msg=one.strategy)


def test_costs_cost_and_the_break_even_is_where_they_eat_the_gain(tmp_path):
    """Switching everything at each decision, for 0.4 % where 1/N gets 0.2 %: two units of wealth are traded for 0.2 %, so
    10 bp eat the gain."""
    returns_DA = np.zeros((430, 2))
    returns_DA[32::10, 0] = returns_DA[37::10, 1] = 0.004
    panel = write_panel(tmp_path, returns_DA)
    setup = BacktestSetup.over(panel, (30, 430), PortfolioConfig(), stride=5, n_assets=2, window=20)

    def right_one(view):
        return np.array([1.0, 0.0]) if panel.date_index(view.date) % 10 == 0 else np.array([0.0, 1.0])

    walks = [simulate(one_over_n(), setup), simulate(EveryDecision("right", right_one), setup)]
    grid = stacked(replayed(walks, setup))
    for low, high in itertools.pairwise(COST_GRID):
        assert (grid[f"cost_{high:g}"].mean(0) < grid[f"cost_{low:g}"].mean(0)).all()
    gap_0, gap_50 = (np.diff(grid[f"cost_{bps}"].mean(0))[0] for bps in (0, 50))
    assert 50 * gap_0 / (gap_0 - gap_50) == pytest.approx(10, rel=0.1)


def test_each_part_of_an_action_adds_what_it_adds(setup):
    always_long, erratic = simulate(one_over_n(), setup), simulate(Erratic(), setup)
    parts = stacked(replayed([always_long, erratic], setup))
    np.testing.assert_allclose(parts["weights"][:, 0], parts["hedge"][:, 0])  # nothing to switch on
    assert not np.allclose(parts["signals"][:, 1], parts["weights"][:, 1])
    assert not np.allclose(parts["hedge"][:, 1], parts["signals"][:, 1])
    assert (np.cumprod(1 + parts["net"], axis=0)[-1] < np.cumprod(1 + parts["hedge"], axis=0)[-1]).all()


def test_a_fill_at_the_open_earns_the_day_and_not_the_night(tmp_path):
    """An oracle of the session after its decision gets what comes after the open, and nothing of the gap."""
    returns_DA = np.zeros((60, 2))
    returns_DA[36, 1] = 1.1 * 1.2 - 1  # a night of 10 % and a day of 20 %
    panel = write_panel(tmp_path, returns_DA)
    overnight = np.zeros(len(panel.returns))
    overnight[panel.rows(36, 1)] = 0.1
    free = PortfolioConfig(cost_bps=0, hedge_cost_bps=0, borrow_rate=0)

    def decided_at_35(view):
        return np.array([0.0, 1.0]) if panel.date_index(view.date) == 35 else np.array([1.0, 0.0])

    for given, wealth in ((overnight, 1.2), (None, 1.0)):
        judged = BacktestSetup.over(panel, (30, 60), free, stride=5, n_assets=2, window=20, overnight=given)
        result = simulate(EveryDecision("oracle", decided_at_35), judged)
        assert result.wealth_T[-1] == pytest.approx(wealth, rel=1e-6)
        assert len(result.dates_T) == 29


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.5, 0.5)])
def test_a_fill_at_the_open_pays_interest_and_fees_of_a_session_once(tmp_path, weights):
    """Nothing moves, so cash and a hedge earn and owe as much as where orders are filled at the close: once a session,
    on what is held over the night."""
    panel = write_panel(tmp_path, np.zeros((60, 2)))
    rules = PortfolioConfig(cost_bps=0, hedge_cost_bps=0, borrow_rate=0.0252, cash_rate=0.0252)
    wanted = np.array(weights)

    class Fixed:
        name = "fixed"

        def decide(self, view, state):
            signals_1N = torch.from_numpy((wanted > 0).astype(float))[None]
            return PortfolioAction(torch.full((1, 2), 0.5, dtype=torch.float64), signals_1N, torch.ones(1).double())

    night = np.zeros(len(panel.returns))
    setups = [
        BacktestSetup.over(panel, (30, 60), rules, stride=5, n_assets=2, window=20, overnight=overnight)
        for overnight in (night, None)
    ]
    opened, closed = (simulate(Fixed(), judged) for judged in setups)
    np.testing.assert_allclose(opened.net_T, closed.net_T, atol=1e-12)
    np.testing.assert_allclose(opened.cost_T, closed.cost_T, atol=1e-12)
    assert opened.gross_T[0] == pytest.approx(1e-4, rel=1e-3)  # of cash, in the session of the first fill
