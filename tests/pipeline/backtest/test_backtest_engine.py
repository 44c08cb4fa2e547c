"""The setup's rules: no sight of the future, no fill at the close of the decision, and every cent accounted for."""

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from handmade_panel import noise, write_panel
from handmade_setup import setup_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.market_view import MarketView, universes
from finjepa_model.portfolio import PortfolioState
from finjepa_pipeline.backtest.engine import COST_GRID, BacktestSetup, replayed, simulate
from finjepa_pipeline.backtest.strategies import EveryDecision, buy_and_hold, extreme_quintile, monthly, one_over_n

FREE = PortfolioConfig(cost_bps=0, hedge_cost_bps=0, borrow_rate=0)


@dataclass
class Scripted:
    """Holds what a function of the view says."""

    rule: object
    hedge: float = 0.0
    name: str = "scripted"
    states: list[PortfolioState] = field(default_factory=list)

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction:
        self.states.append(state)
        weights_N = self.rule(view)  # type: ignore[operator]
        signals_N = (weights_N > 0).astype(float) if weights_N.any() else np.zeros_like(weights_N)
        weights_N = weights_N / weights_N.sum() if weights_N.any() else np.full_like(weights_N, 1 / len(weights_N))
        return PortfolioAction(
            torch.from_numpy(weights_N)[None],
            torch.from_numpy(signals_N)[None],
            torch.tensor([self.hedge], dtype=torch.float64),
        )


def winner_of(day: int, panel: Panel, ahead: int):
    """Everything into the best asset of `ahead` sessions after the view's: a cheat that reads the panel's files."""

    def rule(view: MarketView) -> np.ndarray:
        session = panel.date_index(view.date) + ahead
        rows_A = panel.rows(session, np.arange(len(panel.assets)))
        weights_N = np.zeros(len(panel.assets))
        if session == day:
            weights_N[np.argmax(panel.returns[rows_A])] = 1
        return weights_N

    return rule


def test_a_fill_at_the_close_of_the_decision_is_impossible(tmp_path):
    """Even an oracle that knows the jump of the session after its decision earns nothing from it: it is filled at that
    session's close.
    """
    returns_DA = np.zeros((60, 3))
    returns_DA[36, 1] = 0.5  # decisions are at 30, 35, 40, ...
    panel = write_panel(tmp_path, returns_DA)
    result = simulate(Scripted(winner_of(36, panel, ahead=1)), setup_of(panel, FREE))
    assert result.wealth_T[-1] == pytest.approx(1.0, abs=1e-12)
    returns_DA[36, 1], returns_DA[37, 1] = 0.0, 0.5  # and the session after the fill does earn
    panel = write_panel(tmp_path / "later", returns_DA)
    result = simulate(Scripted(winner_of(37, panel, ahead=2)), setup_of(panel, FREE))
    assert result.wealth_T[-1] == pytest.approx(1.5, rel=1e-6)
    assert result.dates_T[np.argmax(result.gross_T)] == panel.dates[37]


def test_a_view_does_not_change_when_the_future_does(tmp_path):
    n_days, today = 90, 50
    past_DA = noise(n_days, 4)
    other_DA = past_DA.copy()
    other_DA[today + 1 :] = noise(n_days, 4, seed=9)[today + 1 :] * 5
    alive_DA = np.ones((n_days, 4), bool)
    alive_DA[today + 3 :, 2] = False  # and one asset will be delisted
    seen = []
    for name, data, alive in (("a", past_DA, None), ("b", other_DA, alive_DA)):
        view = MarketView(write_panel(tmp_path / name, data, alive_DA=alive), today, np.arange(4), window=20)
        windows = (*view.features(20), *view.returns(60), view.market_features(70), view.market_returns(30))
        today_N = (view.present_N, view.beta_N, view.tradable_N, np.array(view.assets), np.array(view.date))
        seen.append(windows + today_N)
    for before, after in zip(*seen, strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_window_ends_at_the_close_of_the_decision(tmp_path):
    returns_DA = noise(60, 3)
    view = MarketView(write_panel(tmp_path, returns_DA), 40, np.arange(3), window=20)
    np.testing.assert_allclose(view.returns(7)[0], returns_DA[34:41], atol=1e-8)
    np.testing.assert_allclose(view.features(7)[0][..., 0].T, returns_DA[34:41], atol=1e-8)
    np.testing.assert_allclose(view.market_features(7)[:, 0], returns_DA[34:41].mean(1), atol=1e-8)
    assert view.returns(50)[1].sum() == 40 * 3  # the first row has no return, and before it there is nothing


def test_what_is_hardly_traded_costs_more(tmp_path):
    """Half-spread by tier and impact apply where the panel has volumes, and nowhere else."""
    returns_DA, costs = noise(60, 2), {}
    for name, dollars in (("none", None), ("deep", 1e12), ("thin", 1e6)):
        liquidity_DA = None if dollars is None else np.full((60, 2), dollars)
        panel = write_panel(tmp_path / name, returns_DA, liquidity_DA=liquidity_DA)
        costs[name] = simulate(one_over_n(), setup_of(panel)).cost_T[0]
    assert costs["deep"] == pytest.approx(costs["none"], rel=0.01)
    at_least = 35e-4 + 0.1 * returns_DA.std() * 0.5**0.5 * 0.8  # 35 bp, and half a day's volume of each asset
    assert costs["thin"] > at_least


def test_the_universe_is_chosen_from_the_past_and_again_after_a_year(tmp_path):
    alive_DA = np.ones((700, 4), bool)
    alive_DA[:100, 0] = False
    alive_DA[400:, 3] = False
    panel = write_panel(tmp_path, noise(700, 4), alive_DA=alive_DA)
    chosen = universes(panel, range(200, 699, 5), n_assets=3, window=20)
    assert [universe.start for universe in chosen] == [200, 455]
    np.testing.assert_array_equal(chosen[0].assets_N, [1, 2, 3])  # the longest histories, though A003 will end
    np.testing.assert_array_equal(chosen[1].assets_N, [0, 1, 2])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(8)), volumes=st.booleans(), seed=st.integers(0, 5))
def test_the_most_traded_are_chosen_and_never_by_name(tmp_path, order, volumes, seed):
    rng = np.random.default_rng(seed)
    returns_DA, dollars_DA = noise(300, 8, seed), rng.lognormal(18, 1, (300, 8))
    dollars_DA[100:] = dollars_DA[100:, ::-1]  # what comes after the choice is another story
    alive_DA = np.ones((300, 8), bool)
    alive_DA[: 20 + seed, rng.integers(0, 8)] = False

    def chosen(assets: list[int], name: str) -> set[int]:
        volume_DA = dollars_DA[:, assets] if volumes else None
        panel = write_panel(
            tmp_path / name, returns_DA[:, assets], alive_DA=alive_DA[:, assets], liquidity_DA=volume_DA
        )
        [universe] = universes(panel, [99], n_assets=3, window=20)
        return {assets[a] for a in universe.assets_N}

    mine = chosen(list(range(8)), "as named")
    assert chosen(list(order), "renamed") == mine
    if volumes:
        assert mine == set(np.argsort(-dollars_DA[99])[:3].tolist())


def test_what_leaves_the_universe_is_sold_and_seen_as_cash(tmp_path):
    eligible_DA = np.ones((400, 3), bool)
    eligible_DA[200:, 0] = False
    panel = write_panel(tmp_path, np.zeros((400, 3)), eligible_DA=eligible_DA)
    strategy = Scripted(lambda view: np.ones(2))
    result = simulate(strategy, setup_of(panel, FREE, n_assets=2))
    assert result.assets_R == ("A000", "A001", "A002")
    chosen_anew = 51  # the decision at session 285, the first 252 sessions after 30
    assert strategy.states[chosen_anew - 1].cash_X.item() == pytest.approx(0)
    assert strategy.states[chosen_anew].cash_X.item() == pytest.approx(0.5)
    assert strategy.states[chosen_anew].wealth_X.item() == pytest.approx(1)
    np.testing.assert_allclose(result.held_KR[chosen_anew - 1], [0.5, 0.5, 0])
    np.testing.assert_allclose(result.held_KR[chosen_anew], [0, 0.5, 0.5])


@pytest.mark.parametrize(
    "weights", [[0.5, 0.6], [1.5, -0.5], [float("nan"), 1.0], [1.0]], ids=["sum", "negative", "nan", "shape"]
)
def test_an_unsound_action_is_refused_by_name(tmp_path, weights):
    class Unsound:
        name = "broken_rule"

        def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction:
            weights_1N = torch.tensor([weights], dtype=torch.float64)
            return PortfolioAction(weights_1N, torch.ones_like(weights_1N), torch.zeros(1))

    with pytest.raises(FinJEPAError, match="broken_rule decided on 2020-01-31"):
        simulate(Unsound(), setup_of(write_panel(tmp_path, noise(60, 2))))


def test_no_eligible_asset_is_one_clear_line(tmp_path):
    with pytest.raises(FinJEPAError, match="no asset is eligible"):
        setup_of(write_panel(tmp_path, noise(60, 2), alive_DA=np.arange(60)[:, None] >= np.array([50, 50])))


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
def erratic(tmp_path) -> BacktestSetup:
    """A market with gaps and a delisting, where shorts are allowed."""
    n_days, n_assets = 260, 5
    alive_DA = np.ones((n_days, n_assets), bool)
    alive_DA[150:, 4] = False
    tradable_DA = np.random.default_rng(3).random((n_days, n_assets)) > 0.1
    panel = write_panel(tmp_path, noise(n_days, n_assets, seed=1), alive_DA=alive_DA, tradable_DA=tradable_DA)
    return setup_of(panel, PortfolioConfig(allow_short=True), n_assets=4)


def test_results_are_those_of_a_plain_loop_over_sessions(tmp_path):
    """With all at once: shorts, a hedge, gross above one, every price, orders that wait, a delisting."""
    days, ended, random = 260, 150, np.random.default_rng(3)
    alive_DA = np.ones((days, 4), bool)
    alive_DA[ended:, 3] = False
    tradable_DA = (random.random((days, 4)) > 0.2) & alive_DA
    returns_DA, policy_A = noise(days, 4, seed=1), np.array([0.0, 0.0, 0.0, -0.3])
    panel = write_panel(
        tmp_path, returns_DA, alive_DA=alive_DA, tradable_DA=tradable_DA, delisting_return_A=policy_A,
        market_returns_D=returns_DA[:, 0],
    )  # fmt: skip
    returns_DA = returns_DA.astype(np.float32).astype(float) * alive_DA
    rules = PortfolioConfig(
        cost_bps=20, hedge_cost_bps=5, borrow_rate=0.02, cash_rate=0.03, short_rebate=0.01, margin_spread=0.015,
        allow_short=True, max_gross=1.3,
    )  # fmt: skip
    result = simulate(Erratic(), setup_of(panel, rules))
    held_A, hedge, cash, orders_A, hedged, wealths, costs = np.zeros(4), 0.0, 1.0, np.full(4, np.nan), 0.0, [], []
    for day in range(31, days):
        sold = np.maximum(-held_A, 0).sum() - hedge
        own, borrow = cash - sold, 0.02 * sold / 252
        cash += (0.03 * own + 0.015 * min(own, 0) + 0.01 * sold) / 252 - borrow
        held_A, hedge = held_A * (1 + returns_DA[day]), hedge * (1 + returns_DA[day, 0])
        if day == ended:
            cash, held_A[3] = cash + 0.7 * held_A[3], 0.0
        step, session = divmod(day - 31, 5)
        ordered = session == 0 and result.ordered_K[step]
        if ordered:
            orders_A, hedged = 1.3 * result.weights_KR[step] * result.signals_KR[step], result.hedges_K[step]
        moves_A, cost = ~np.isnan(orders_A) & tradable_DA[day], 0.0
        if ordered or moves_A.any():
            wealth, stuck_A, wanted_A = held_A.sum() + cash + hedge, np.where(moves_A, 0, held_A), orders_A.copy()
            wanted_A[~moves_A] = 0.0
            for _ in range(50):  # what is left after the costs is what is shared out
                left = wealth - cost
                room = max(1.3 * left - np.abs(stuck_A).sum(), 0) / max(np.abs(wanted_A).sum(), 1e-12)
                after_A = stuck_A + wanted_A * min(left, room)
                hedge_after = -hedged * max(after_A.sum(), 0)
                cost = 20e-4 * np.abs(after_A - held_A).sum() + 5e-4 * abs(hedge_after - hedge)
            held_A, hedge, cash = after_A, hedge_after, left - after_A.sum() - hedge_after
            orders_A[moves_A | ((orders_A == 0) & (held_A == 0))] = np.nan
        wealths.append(held_A.sum() + cash + hedge)
        costs.append(cost + borrow)
    before_T = np.array([1.0, *wealths[:-1]])
    np.testing.assert_allclose(result.wealth_T, wealths, rtol=1e-12)
    np.testing.assert_allclose(result.cost_T, costs / before_T, atol=1e-12)
    np.testing.assert_allclose(result.gross_T - result.cost_T, result.net_T, atol=1e-15)
    np.testing.assert_allclose(np.cumprod(1 + result.net_T), result.wealth_T, rtol=1e-12)


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


def test_decisions_replayed_at_many_costs_are_the_simulations_at_these_costs(erratic):
    """All strategies side by side are what each is alone."""
    again = replayed([simulate(strategy, erratic) for strategy in strategies()], erratic)
    for bps in COST_GRID:
        dearer = replace(erratic, costs=replace(erratic.costs, cost_bps=bps))
        for one, strategy in zip(again, strategies(), strict=True):
            net_T = simulate(strategy, dearer).net_T
            np.testing.assert_allclose(one.replays[f"cost_{bps:g}"], net_T, atol=1e-12, err_msg=one.strategy)


def test_costs_cost_and_the_break_even_is_where_they_eat_the_gain(tmp_path):
    """Switching everything at each decision, for 0.4 % where 1/N gets 0.2 %: two units of wealth are traded for 0.2 %, so
    10 bp eat the gain."""
    returns_DA = np.zeros((430, 2))
    returns_DA[32::10, 0] = returns_DA[37::10, 1] = 0.004
    panel = write_panel(tmp_path, returns_DA)
    setup = setup_of(panel)

    def right_one(view):
        return np.array([1.0, 0.0]) if panel.date_index(view.date) % 10 == 0 else np.array([0.0, 1.0])

    walks = [simulate(one_over_n(), setup), simulate(EveryDecision("right", right_one), setup)]
    grid = stacked(replayed(walks, setup))
    for low, high in itertools.pairwise(COST_GRID):
        assert (grid[f"cost_{high:g}"].mean(0) < grid[f"cost_{low:g}"].mean(0)).all()
    gap_0, gap_50 = (np.diff(grid[f"cost_{bps}"].mean(0))[0] for bps in (0, 50))
    assert 50 * gap_0 / (gap_0 - gap_50) == pytest.approx(10, rel=0.1)


def test_each_part_of_an_action_adds_what_it_adds(erratic):
    parts = stacked(replayed([simulate(one_over_n(), erratic), simulate(Erratic(), erratic)], erratic))
    np.testing.assert_allclose(parts["weights"][:, 0], parts["hedge"][:, 0])  # nothing to switch on
    assert not np.allclose(parts["signals"][:, 1], parts["weights"][:, 1])
    assert not np.allclose(parts["hedge"][:, 1], parts["signals"][:, 1])
    assert (np.cumprod(1 + parts["net"], axis=0)[-1] < np.cumprod(1 + parts["hedge"], axis=0)[-1]).all()
