"""The live book is the backtest of the same sessions: same schedule, same state, same decisions, whenever its runs came."""

from dataclasses import replace
from datetime import date

import numpy as np
import pytest
import torch

from finjepa_model import FinJEPA, market_view
from finjepa_model.data.splits import history_needed
from finjepa_model.planner_strategies import FinJEPAStrategy, MarketImagination
from finjepa_model.td.training import TDTrainer
from finjepa_pipeline.backtest.engine import simulate
from finjepa_pipeline.prices.calendar import session_after
from finjepa_pipeline.publishing import daily
from finjepa_pipeline.publishing.daily import make_decision
from tests.pipeline.backtest.handmade_panel import write_panel
from tests.pipeline.backtest.handmade_setup import config_for, setup_over
from tests.pipeline.publishing.conftest import Home

STRIDE, ASSETS, LENGTH, REBALANCED = 5, 7, 18, 10
PLANNERS = ("cem", "mppi", "gradient", "qp", "random", "td")


class Market:
    """A panel that grows by a session a night: an asset ends, another one joins, a third cannot be traded for a while."""

    def __init__(self, folder, first: int):
        self.folder, self.first, self.days = folder, first, first + LENGTH
        random = np.random.default_rng(3)
        self.returns_DA = random.normal(0.001, 0.02, (self.days, ASSETS))
        self.tradable_DA = np.ones((self.days, ASSETS), bool)
        self.tradable_DA[first + STRIDE + 1 : first + STRIDE + 4, 1] = False  # over a fill: its order waits
        self.alive_DA = np.ones((self.days, ASSETS), bool)
        self.alive_DA[first + 13 :, 2] = False  # in the middle of a step
        self.eligible_DA = np.ones((self.days, ASSETS), bool)
        self.eligible_DA[: first + 8, 6] = False  # joins when the universe is chosen again
        self.volume_DA = random.uniform(1e5, 1e8, (self.days, ASSETS))

    def until(self, session: int):
        """The panel of the night after a session."""
        days = session + 1
        return write_panel(
            self.folder / f"panel-{days}",
            self.returns_DA[:days],
            alive_DA=self.alive_DA[:days],
            tradable_DA=self.tradable_DA[:days],
            eligible_DA=self.eligible_DA[:days],
            liquidity_DA=self.volume_DA[:days],
            delisting_return_A=np.full(ASSETS, -0.3),
        )


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    return Market(tmp_path_factory.mktemp("market"), history_needed(_config()) + 420)


@pytest.fixture(scope="module")
def model(market):
    """A world model whose forecasts are random functions of what it sees, with a td branch of a few steps."""
    torch.manual_seed(0)
    model = FinJEPA(_config())
    model.readout.set(0.3 * torch.randn_like(model.readout.weights_Z), 0.1, 0.9)
    whole = market.until(market.days - 1)
    TDTrainer(model, whole, market.folder / "run").train()
    return model


@pytest.fixture(autouse=True)
def universe_changes(monkeypatch):
    monkeypatch.setattr(market_view, "REBALANCE_UNIVERSE_EVERY", REBALANCED)


def _config():
    config = config_for(ASSETS - 1)
    return replace(
        config,
        model=replace(config.model, stride=STRIDE),
        portfolio=replace(config.portfolio, allow_short=True, borrow_rate=0.05, cash_rate=0.02, max_gross=1.2),
        td=replace(config.td, enabled=True, steps=2, dates=8, hidden=16, kept_states=256),
    )


def night(home: Home, market: Market, session: int, monkeypatch) -> dict:
    """What a run after a session leaves in the file of its date; nothing but the home goes from one to the next."""
    folder = market.until(session).folder
    monkeypatch.setattr(daily, "current_panel", lambda settings: folder)
    made = make_decision(home.settings, home.warehouse)
    assert made is not None
    assert made.decision["date"] == made.path.stem
    assert made.path.with_suffix(".html").is_file()
    return made.decision


def judged_by(market: Market, checkpoint, planner: str, block: tuple[int, int]):
    setup = setup_over(market.until(market.days - 1), _config(), block)
    return setup, simulate(FinJEPAStrategy(planner, MarketImagination(checkpoint)), setup)


def assert_same(found: dict, judged, session: int, first: int) -> None:
    """Wealth, and the return and turnover of the session, to 1e-12; what is held where a step of the backtest ends."""
    if session == first:
        assert found["wealth"] == 1.0
        return
    t = session - first - 1
    assert found["wealth"] == pytest.approx(judged.wealth_T[t], abs=1e-12)
    assert found["net_return"] == pytest.approx(judged.net_T[t], abs=1e-12)
    assert found["turnover"] == pytest.approx(judged.turnover_T[t], abs=1e-12)
    assert (found["held_hedge"] < 0) == bool(judged.hedged_T[t]) or (t + 1) % STRIDE == 0 or t % STRIDE == 0
    step, rest = divmod(session - first, STRIDE)
    if rest == 0:
        held = [found["held"].get(name, 0.0) for name in judged.assets_R]
        np.testing.assert_allclose(held, judged.held_KR[step - 1], atol=1e-12)


@pytest.mark.parametrize(
    ("planner", "seed"),
    [("cem", 0), ("qp", 0), ("td", 0)]  # one that samples, one that solves, one with a policy
    + [pytest.param(planner, seed, marks=pytest.mark.slow) for planner in PLANNERS for seed in (1, 2)],
)
def test_nightly_runs_hold_what_the_backtest_holds(planner, seed, market, model, tmp_path_factory, monkeypatch):
    random = np.random.default_rng([seed, PLANNERS.index(planner)])
    missed = set((1 + random.permutation(LENGTH - 2)[: random.integers(5, LENGTH - 8)]).tolist())
    missed.add(STRIDE * int(random.integers(1, LENGTH // STRIDE)))  # a day of a decision among them
    home = Home(tmp_path_factory.mktemp("home") / "home")
    checkpoint = home.add_checkpoint("aaaa", model=model)
    home.promote("aaaa", planner)
    first = market.first
    setup, judged = judged_by(market, checkpoint, planner, (first, market.days))
    assert len({universe.start for universe in setup.universes}) > 1  # or nothing is tried of it
    for session in range(first, market.days):
        if session - first in missed:
            continue
        found = night(home, market, session, monkeypatch)
        assert_same(found, judged, session, first)
        due = (session - first) % STRIDE == 0
        assert found["hold"] or due  # where one is due, nothing may be worth its costs
        assert ("no decision is due" in found["hold_reason"]) is not due
        after = first + STRIDE * ((session - first) // STRIDE + 1)
        assert found["next_decision"] == str(_date(market, session, after))
        if session % 4 == 0:
            assert night(home, market, session, monkeypatch) == found  # once more, it says the same
    dates = [str(day) for day in judged.decided_K]
    rows = home.rows("SELECT date::VARCHAR, made_afterwards FROM decision_portfolios ORDER BY date")
    assert [row[0] for row in rows] == dates[: len(rows)]
    late = {str(np.datetime64("2020-01-01") + first + day) for day in missed}
    assert {date for date, made_afterwards in rows if made_afterwards} == late & {date for date, _ in rows}


def _date(market: Market, session: int, after: int):
    """Panels made by hand have a session every day; what lies ahead of one is told by the calendar of New York."""
    newest = date.fromisoformat(str(np.datetime64("2020-01-01") + session))
    return session_after("XNYS", newest, after - session)


def test_a_new_champion_takes_over_at_the_next_decision_of_the_book(market, model, home, monkeypatch):
    """It starts from what the book holds, on the schedule of the book, and without the plan of another."""
    first = market.first
    checkpoint = home.add_checkpoint("aaaa", model=model)
    home.add_checkpoint("bbbb", model=model)
    home.promote("aaaa", "cem")
    _, judged = judged_by(market, checkpoint, "cem", (first, market.days))
    changed = first + STRIDE + 2
    for session in range(first, changed + 1):
        night(home, market, session, monkeypatch)
    home.promote("bbbb", "qp", f"{np.datetime64('2020-01-01') + changed} 20:00:00")
    for session in range(changed, first + 2 * STRIDE):
        found = night(home, market, session, monkeypatch)
        assert (found["hold"], found["checkpoint"], found["planner"]) == (True, "aaaa", "cem")
        assert_same(found, judged, session, first)
    found = night(home, market, first + 2 * STRIDE, monkeypatch)
    assert (found["hold"], found["checkpoint"], found["planner"]) == (False, "bbbb", "qp")
    assert found["wealth"] == pytest.approx(judged.wealth_T[2 * STRIDE - 1], abs=1e-12)


def test_a_missed_decision_is_made_by_the_champion_of_its_night(market, model, home, monkeypatch):
    first, start = market.first, np.datetime64("2020-01-01")
    home.add_checkpoint("aaaa", model=model)
    home.add_checkpoint("bbbb", model=model)
    home.promote("aaaa", "qp")
    night(home, market, first, monkeypatch)
    home.promote("bbbb", "qp", f"{start + first + STRIDE + 2} 20:00:00")
    night(home, market, first + 3 * STRIDE + 1, monkeypatch)
    rows = home.rows("SELECT checkpoint, made_afterwards FROM decision_portfolios ORDER BY date")
    assert rows == [("aaaa", False), ("aaaa", True), ("bbbb", True), ("bbbb", True)]


def test_a_trial_decides_on_its_date_and_changes_no_book(market, model, home, monkeypatch):
    """Another planner or checkpoint, and a date before the book, whatever its schedule says."""
    first, start = market.first, np.datetime64("2020-01-01")
    home.add_checkpoint("aaaa", model=model)
    home.promote("aaaa", "qp")
    for session in (first, first + 2):
        night(home, market, session, monkeypatch)
    tried = make_decision(home.settings, home.warehouse, planner="mppi")
    same = make_decision(home.settings, home.warehouse, checkpoint="aaaa", planner="qp")
    before = make_decision(home.settings, home.warehouse, as_of=str(start + first - 3))
    for made, day in ((tried, 2), (same, 2), (before, -3)):
        assert made is not None
        assert (made.decision["hold"], made.decision["book"], made.decision["next_decision"]) == (False, "trial", None)
        assert made.decision["date"] == str(start + first + day)
        assert bool(made.decision["held"]) == (day > 0)
    assert night(home, market, first + STRIDE, monkeypatch)["hold"] is False  # as if nothing had been tried
    assert home.rows("SELECT count(*) FROM decision_portfolios") == [(2,)]


def test_a_decision_whose_file_is_lost_stands_in_the_tables(market, model, home, monkeypatch):
    home.add_checkpoint("aaaa", model=model)
    home.promote("aaaa", "qp")
    found = night(home, market, market.first, monkeypatch)
    assert found["changes"] == ["First decision: the portfolio starts in cash."]
    assert (found["previous_date"], found["held"], found["held_cash"]) == (None, {}, 1.0)
    file = home.settings.reports / "decisions" / f"{found['date']}.json"
    file.unlink()
    again = night(home, market, market.first, monkeypatch)
    for name in ("weights", "signals", "hedge", "positions", "held", "wealth", "checkpoint", "next_decision", "hold"):
        assert again[name] == found[name]
    assert home.rows("SELECT count(*) FROM decision_portfolios") == [(1,)]


def test_no_asset_with_a_price_on_the_day_of_a_decision_orders_nothing(market, model, home, monkeypatch):
    """As in a backtest; the next decision is `STRIDE` sessions later."""
    first = market.first
    checkpoint = home.add_checkpoint("aaaa", model=model)
    home.promote("aaaa", "cem")
    halted = Market(market.folder / "halted", first)
    halted.returns_DA = market.returns_DA
    observed = halted.until

    def without(session: int):
        panel = observed(session)
        rows = np.load(panel.folder / "observed.npy")
        known = panel.rows(first + STRIDE, np.arange(len(panel.assets)))
        rows[known[known >= 0]] = False
        np.save(panel.folder / "observed.npy", rows)
        return type(panel).open(panel.folder)

    monkeypatch.setattr(halted, "until", without)
    _, judged = judged_by(halted, checkpoint, "cem", (first, market.days))
    assert judged.ordered_K[1] == False  # noqa: E712
    for session in range(first, first + 3 * STRIDE + 1):
        found = night(home, halted, session, monkeypatch)
        assert_same(found, judged, session, first)
        if session == first + STRIDE:
            assert found["hold"] is False
            assert "No orders" in found["changes"][0]
