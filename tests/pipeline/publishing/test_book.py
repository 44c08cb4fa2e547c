"""The portfolio that goes from decision to decision is the one that the backtest would hold."""

from dataclasses import replace

import duckdb
import numpy as np
import pytest
import torch

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_pipeline.backtest.engine import Court, walk
from finjepa_pipeline.publishing.book import Holdings, holdings_at
from finjepa_pipeline.publishing.decision import Decision, file_of, store_decision
from finjepa_pipeline.publishing.reasons import Calibration, Reasons
from tests.pipeline.backtest.handmade_panel import write_panel

DAYS, ASSETS, FIRST = 14, 4, 6
COSTS = PortfolioConfig(cost_bps=20.0, hedge_cost_bps=3.0, borrow_rate=0.05, allow_short=True)
WHY = Reasons({"growth": -0.01}, ((0.01, 0.02),), 5, (), Calibration(0, None, None, None))


class Restless:
    """Another portfolio at every close, hedged on odd sessions."""

    name = "restless"

    def decide(self, view, state) -> PortfolioAction:
        day = int((view.date - np.datetime64("2020-01-01")).astype(int))
        random = torch.Generator().manual_seed(day)
        weights = torch.rand(1, len(view.assets), generator=random, dtype=torch.float64)
        signals = torch.tensor([[1.0, -1.0, 1.0, 0.0][: len(view.assets)]], dtype=torch.float64)
        return PortfolioAction(weights / weights.sum(), signals, torch.tensor([float(day % 2)], dtype=torch.float64))


@pytest.fixture
def market(tmp_path):
    returns_DA = np.random.default_rng(3).normal(0.001, 0.02, (DAYS, ASSETS))
    tradable_DA = np.ones((DAYS, ASSETS), bool)
    tradable_DA[9, 1] = False  # an order that cannot be filled at its close
    alive_DA = np.ones((DAYS, ASSETS), bool)
    alive_DA[11:, 2] = False  # an asset that ends
    return write_panel(tmp_path / "panel", returns_DA, tradable_DA=tradable_DA, alive_DA=alive_DA)


def decision(panel, session: int, holdings: Holdings, action: PortfolioAction, assets) -> Decision:
    def by_name(values_1N) -> dict:
        return dict(zip(assets, values_1N[0].tolist(), strict=True))

    wealth = float(holdings.state.wealth_X[0])
    return Decision(
        date=str(panel.dates[session]),
        assets=assets,
        weights=by_name(action.weights_XN),
        signals={name: round(signal) for name, signal in by_name(action.signals_XN).items()},
        hedge=bool(action.hedge_X[0] > 0.5),
        positions=by_name(action.positions(allow_short=True)),
        cash=0.0,
        expected_return=0.1,
        expected_volatility=0.2,
        planner="restless",
        checkpoint="aaaa",
        data_version="hand-made",
        feed="test",
        book="champion",
        held=holdings.shares,
        held_cash=float(holdings.state.cash_X[0]) / wealth,
        held_hedge=float(holdings.state.hedge_X[0]) / wealth,
        wealth=wealth,
        peak=float(holdings.state.peak_X[0]),
        previous_date=holdings.previous.date if holdings.previous else None,
        changes=(),
        why=WHY,
    )


def test_nights_one_after_another_hold_what_the_backtest_holds(market, tmp_path):
    simulator, strategy = PortfolioSimulator(COSTS), Restless()
    court = Court.over(market, (FIRST, DAYS), COSTS, stride=1, n_assets=ASSETS, window=2)
    judged = walk(strategy, court)
    views = court.views()
    with duckdb.connect() as con:
        for night, (session, view) in enumerate(zip(court.decisions, views, strict=True)):
            holdings = holdings_at(con, market, session, "champion", simulator)
            if night > 0:
                assert float(holdings.state.wealth_X[0]) == pytest.approx(judged.wealth_T[night - 1], abs=1e-12)
                held = [holdings.shares.get(name, 0.0) for name in judged.assets_R]
                np.testing.assert_allclose(held, judged.held_KR[night - 1], atol=1e-12)
            action = strategy.decide(view, holdings.over(view.assets, simulator))
            made = decision(market, session, holdings, action, view.assets)
            path, new = store_decision(con, made, tmp_path)
            assert new
            assert not store_decision(con, made, tmp_path)[1]
            assert f"close of {made.date}" in path.with_suffix(".html").read_text()
        decided = len(court.decisions)
        assert con.execute("SELECT count(*) FROM decision_portfolios").fetchall() == [(decided,)]


def test_a_missed_night_loses_nothing(market, tmp_path):
    """Without the decision of a night, what was held drifts on to the next."""
    simulator, strategy = PortfolioSimulator(COSTS), Restless()
    court = Court.over(market, (FIRST, DAYS), COSTS, stride=3, n_assets=ASSETS, window=2)
    judged = walk(strategy, court)
    with duckdb.connect() as con:
        for session, view in zip(court.decisions, court.views(), strict=True):
            holdings = holdings_at(con, market, session, "champion", simulator)
            action = strategy.decide(view, holdings.over(view.assets, simulator))
            store_decision(con, decision(market, session, holdings, action, view.assets), tmp_path)
        last = holdings_at(con, market, court.end, "champion", simulator)
    assert float(last.state.wealth_X[0]) == pytest.approx(judged.wealth_T[-1], abs=1e-12)


def test_books_do_not_mix(market, tmp_path):
    simulator, strategy = PortfolioSimulator(COSTS), Restless()
    court = Court.over(market, (FIRST, DAYS), COSTS, stride=1, n_assets=ASSETS, window=2)
    view = court.views()[0]
    with duckdb.connect() as con:
        start = holdings_at(con, market, FIRST, "champion", simulator)
        action = strategy.decide(view, start.over(view.assets, simulator))
        real = decision(market, FIRST, start, action, view.assets)
        other = replace(real, book="trial", planner="other")
        store_decision(con, other, tmp_path)
        assert holdings_at(con, market, FIRST + 1, "champion", simulator).previous is None
        store_decision(con, real, tmp_path)
        assert holdings_at(con, market, FIRST + 1, "hindsight", simulator).previous is None
        assert holdings_at(con, market, FIRST + 1, "trial", simulator).previous.planner == "restless"
        assert holdings_at(con, market, FIRST, "champion", simulator).previous is None  # never from its own date
    files = {
        file_of(tmp_path, {"date": d.date, "planner": d.planner, "checkpoint": "a"}, d.book) for d in (real, other)
    }
    assert len(files) == 2
