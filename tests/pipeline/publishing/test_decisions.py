"""Who decides and forecasts at a close, on what, what terminal and page say first; a frame of prices gives the same."""

import io
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from rich.console import Console
from skfolio.datasets import load_sp500_dataset

from finjepa_model import FinJEPA
from finjepa_model.data.batches import observe
from finjepa_model.data.panel import Panel
from finjepa_model.decision import SAME_RETURN
from finjepa_model.errors import FinJEPAError
from finjepa_model.features import read_prices
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_pipeline import console
from finjepa_pipeline.features import build_panel
from finjepa_pipeline.prices.derive import UniverseConfig, derive
from finjepa_pipeline.prices.ingest import ingest
from finjepa_pipeline.prices.sources import PriceSourceConfig
from finjepa_pipeline.publishing import daily
from finjepa_pipeline.publishing import decision as decisions
from finjepa_pipeline.publishing.book import cash
from finjepa_pipeline.publishing.daily import MadeDecision, make_decision
from finjepa_pipeline.publishing.decision import BookDecision, decide, forecast
from finjepa_pipeline.report.decision import decision_page
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import NamedCheckpoint
from finjepa_pipeline.warehouse import Warehouse
from tests.model.frames import download, reader
from tests.pipeline.backtest.handmade_panel import write_panel
from tests.pipeline.backtest.handmade_setup import config_for


@pytest.fixture
def decided(home, tmp_path, monkeypatch):
    """A panel, and (checkpoint, book, name, assets) of every decision that is asked for."""
    panel = write_panel(tmp_path / "panel", np.random.default_rng(0).normal(0, 0.01, (14, 8)))
    made: list[tuple[str, str, str, int]] = []

    def note(settings, warehouse, panel, session, decider):
        made.append((decider.checkpoint.name, decider.book, decider.name, decider.n_assets))
        return MadeDecision({}, tmp_path, new=True)

    monkeypatch.setattr(daily, "current_panel", lambda settings: panel.folder)
    monkeypatch.setattr(daily, "_made", note)
    monkeypatch.setattr(daily, "_follow", note)
    return panel, made


def test_each_date_is_decided_by_the_champion_of_its_night(home, decided):
    panel, made = decided
    dates = [str(day) for day in panel.dates]
    for name in ("aaaa", "bbbb"):
        home.add_checkpoint(name)
    home.promote("aaaa", when=f"{dates[4]} 23:30:00")  # in the evening after the close of session 4, UTC
    home.promote("bbbb", when=f"{dates[8]} 23:30:00")
    for date in dates[2:11]:
        make_decision(home.settings, home.warehouse, as_of=date)
    assert {row[:2] for row in made[:2]} == {("bbbb", "trial")}  # before the first champion the present one decides
    assert {row[:2] for row in made[2:6]} == {("aaaa", "champion")}
    assert {row[:2] for row in made[6:]} == {("bbbb", "champion")}


def test_a_book_trades_as_many_assets_as_its_backtest_and_another_number_is_a_trial(home, decided):
    home.add_checkpoint("aaaa")
    home.promote("aaaa", when="2020-01-02 23:30:00")
    make_decision(home.settings, home.warehouse)
    with home.warehouse.connect() as con:
        con.execute(
            """INSERT INTO backtest_returns BY NAME SELECT 'aaaa' AS checkpoint, 'mppi' AS strategy, 'test' AS block,
            DATE '2020-01-05' AS date, 0 AS gross_return, 0 AS net_return, 0 AS cost, 0 AS turnover, 1 AS wealth, false AS hedge,
            'data1' AS data_version, '0123456789ab-5' AS setup"""
        )
    for n_assets in (None, 5, 3):
        make_decision(home.settings, home.warehouse, n_assets=n_assets)
    assert [row[1:] for row in decided[1]] == [
        ("champion", "mppi", 20),  # its backtest is of an older version
        ("champion", "mppi", 5),
        ("champion", "mppi", 5),
        ("trial", "mppi, 3 assets", 3),
    ]


@pytest.fixture
def market(home, tmp_path, monkeypatch):
    """A home whose newest checkpoint fits its panel, in which nobody is champion; and that panel."""
    returns_DA = np.random.default_rng(0).normal(0, [0.01, 0.02, 0.03], (400, 3))
    panel = write_panel(tmp_path / "panel", returns_DA)
    monkeypatch.setattr(decisions, "current_panel", lambda settings: panel.folder)
    torch.manual_seed(0)
    folder = home.add_checkpoint("aaaa", model=FinJEPA(config_for(3)))
    monkeypatch.setattr(decisions, "current_checkpoint", lambda settings: folder)
    return home, panel


def test_a_forecast_is_the_models_own_at_that_close_and_reads_nothing_later(market, tmp_path, monkeypatch):
    home, panel = market
    found = forecast(home.settings, None, str(panel.dates[350]), 20)
    assert (found["checkpoint"], found["date"], found["assets"]) == ("aaaa", str(panel.dates[350]), list(panel.assets))
    model = FinJEPA.from_pretrained(home.settings.checkpoints / "aaaa")
    own = model.forecast_risk(observe(panel, np.array([350]), np.arange(3)[None], 1, model.config))
    assert [list(row.values()) for row in found["volatility"].values()] == own.volatility_BNV[0].tolist()
    month_N = [found["volatility"][name]["21"] for name in panel.assets]
    assert month_N == sorted(month_N)
    for levels in (found["quantiles"][panel.assets[0]]["21"], found["portfolio"]["5"]):
        assert list(levels.values()) == sorted(levels.values())

    later_DA = np.random.default_rng(0).normal(0, [0.01, 0.02, 0.03], (400, 3))
    later_DA[351:] *= 5
    other = write_panel(tmp_path / "later", later_DA)
    monkeypatch.setattr(decisions, "current_panel", lambda settings: other.folder)
    assert forecast(home.settings, None, str(panel.dates[350]), 20) == found


def test_the_champion_forecasts_where_there_is_one_and_users_mistakes_end_in_one_line(market):
    home, panel = market
    home.add_checkpoint("cccc", model=FinJEPA(config_for(3)))
    home.add_checkpoint("bbbb")
    home.promote("bbbb")  # reads another channel than the panel has: it is unknown
    assert forecast(home.settings, None, None, 2)["checkpoint"] == "bbbb"
    assert forecast(home.settings, "cccc", None, 2)["checkpoint"] == "cccc"
    with pytest.raises(FinJEPAError, match="there are no prices on 1990-01-01"):
        forecast(home.settings, "cccc", "1990-01-01", 20)
    with pytest.raises(FinJEPAError, match="sessions of history"):
        forecast(home.settings, "cccc", str(panel.dates[5]), 20)


def made(**changed) -> BookDecision:
    """Half in A, whose budget is .5; the budget of B is flat and stays in cash."""
    values = {
        "date": "2022-12-28",
        "assets": ("A", "B"),
        "weights": {"A": 0.5, "B": 0.5},
        "signals": {"A": 1, "B": 0},
        "hedge": False,
        "positions": {"A": 0.5, "B": 0.0},
        "cash": 0.5,
        "expected_return": 0.1,
        "expected_volatility": 0.2,
        "planner": "mppi",
        "checkpoint": "aaaa",
        "data_version": "data1",
        "feed": "sample",
        "book": "champion",
        "held": {"A": 0.25},
        "held_cash": 0.75,
        "held_hedge": 0.0,
        "wealth": 1.1,
        "peak": 1.2,
        "previous_date": "2022-12-14",
        "net_return": 0.001,
        "turnover": 0.0,
        "waiting": {},
        "hold": False,
        "decided": "2022-12-28",
        "next_decision": "2023-01-12",
        "made_afterwards": False,
        "same_return": False,
        "changes": ("A: 25.0% held, 50.0% wanted (+25.0%)",),
        "why": {"terms": {"growth": -0.01}, "path": ((0.01, 0.02),), "step_sessions": 10},
    }
    return BookDecision(**values | changed)


@pytest.fixture
def said(monkeypatch):
    def say(decision: BookDecision) -> list[str]:
        text = io.StringIO()
        monkeypatch.setattr(console, "out", Console(file=text, width=120, soft_wrap=True))
        console.print_decision(decision.to_json())
        return [line.strip() for line in text.getvalue().splitlines() if line.strip()]

    return say


def test_what_is_held_comes_first_with_the_planner_and_cash(said):
    lines = said(made())
    assert lines[0].startswith("mppi: to hold after the next close")
    assert [line.split() for line in lines[2:4]] == [
        ["A", "50.0", "%", "25.0", "%"],
        ["cash", "50.0", "%", "75.0", "%"],
    ]
    assert not any(line.startswith("B") for line in lines)  # a budget that is flat is held by nobody
    lines = said(made(signals={"A": 0, "B": 0}, positions={"A": 0.0, "B": 0.0}, cash=1.0, held={}, held_cash=1.0))
    assert lines[2].split() == ["cash", "100.0", "%", "100.0", "%"]
    lines = said(made(previous_date=None, changes=("First decision: the portfolio starts in cash.",)))
    assert "First decision: the portfolio starts in cash." in lines


def test_a_hold_says_when_the_next_decision_is(said):
    reason = "no decision is due at this close"
    stands = ("The decision of 2022-12-28 stands.",)
    held = made(hold=True, hold_reason=reason, date="2023-01-04", why=None, changes=stands)
    lines = said(held)
    assert lines[0] == f"Hold at the close of 2023-01-04: {reason}; next decision on 2023-01-12."
    assert lines[1].startswith("mppi: held at the close of 2023-01-04")
    page = decision_page(held.to_json())
    assert "Hold at the close of 2023-01-04" in page
    assert f"Hold: {reason}." in page
    assert 'href="2022-12-28.html"' in page
    assert "2023-01-12" in page


def test_one_return_for_all_assets_is_said_first(said):
    assert said(made(same_return=True))[0] == SAME_RETURN
    page = decision_page(made(same_return=True).to_json())
    assert page.index(SAME_RETURN) < page.index("mppi holds")
    assert SAME_RETURN not in decision_page(made().to_json())


def test_a_decision_that_was_made_afterwards_says_so(said):
    late = made(made_afterwards=True)
    assert any("later close was known" in line for line in said(late))
    assert "later close was known" in decision_page(late.to_json())


def test_the_page_gives_no_correlation_without_an_interval():
    page = decision_page(made().to_json())
    assert "correlat" not in page
    assert "mppi holds 50% of wealth in" in page


def events() -> pd.DataFrame:
    """Splits, a dividend, a jump like a split, a stale week, days without a trade, a late listing and an end."""
    frame = download(assets=8, days=420)
    frame.loc[frame.index[200], ("Volume", "S03")] *= 2
    for field in ("Close", "Adj Close", "High", "Low", "Open"):
        frame[field, "S03"] = np.where(np.arange(420) < 200, 1.0, 0.5) * frame[field, "S03"]
        frame.loc[frame.index[300:308], (field, "S04")] = frame.loc[frame.index[300], ("Close", "S04")]
    frame.loc[frame.index[410:413], ("Volume", "S05")] = 0
    frame.loc[frame.index[:120], pd.IndexSlice[:, "S06"]] = np.nan
    frame.loc[frame.index[350:], pd.IndexSlice[:, "S07"]] = np.nan
    return frame


def numbers(nested: Any) -> list[float]:
    """The leaves of nested mappings and lists, in order."""
    if isinstance(nested, float):
        return [nested]
    return [leaf for part in (nested.values() if isinstance(nested, dict) else nested) for leaf in numbers(part)]


@pytest.mark.parametrize("market", ["sample", "events"])
def test_a_frame_and_the_pipeline_say_the_same(market: str, tmp_path, monkeypatch) -> None:
    frame = load_sp500_dataset() if market == "sample" else events()
    settings = Settings(home=tmp_path / "home").ensure()
    warehouse = Warehouse.from_settings(settings)
    source = PriceSourceConfig(data_source="sample")
    if market == "events":
        monkeypatch.setattr("finjepa_pipeline.prices.contract.judge", lambda *_: ())
        read_prices(frame).rows.write_parquet(tmp_path / "prices.parquet")
        source = PriceSourceConfig(data_source="files", path=str(tmp_path / "prices.parquet"), calendar="24/7")
    ingest(warehouse, settings, source)
    derive(warehouse, UniverseConfig())
    model = reader(frozenset({"close"})) if market == "sample" else reader()
    folder = settings.checkpoints / "aaaa"
    model.save_pretrained(folder)
    with warehouse.connect() as con:
        panel = Panel.open(build_panel(con, settings))
    monkeypatch.setattr(decisions, "named_checkpoint", lambda *_: NamedCheckpoint(folder, "aaaa"))

    theirs = forecast(settings, "aaaa", None, 20)
    mine = model.forecast(frame)
    assert (theirs["date"], theirs["assets"]) == (mine.date, list(mine.assets))
    assert len(mine.assets) == (20 if market == "sample" else 7)
    own = mine.to_dict()
    for name in ("volatility", "correlation", "quantiles", "portfolio", "expected_return"):
        np.testing.assert_allclose(numbers(own[name]), numbers(theirs[name]), rtol=1e-6, atol=1e-9, err_msg=name)

    simulator, session = PortfolioSimulator(model.config.portfolio), len(panel.dates) - 1
    for planner in ("qp", "mppi"):
        decision = decide(
            NamedCheckpoint(folder, "aaaa"), panel, planner, session, cash(simulator), "trial", 20, "24/7"
        )
        found = model.decide(pl.from_pandas(frame.reset_index()) if market == "sample" else frame, planner=planner)
        chosen = dict(zip(found.assets, np.asarray(found.to_frame()["holding"]), strict=True))
        np.testing.assert_allclose(list(chosen.values()), [decision.positions[name] for name in chosen], atol=1e-6)
        assert (found.hedge, found.date) == (decision.hedge, decision.date)
        assert found.expected_volatility == pytest.approx(decision.expected_volatility, abs=1e-6)
