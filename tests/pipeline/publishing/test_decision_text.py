"""What the terminal and the page of a decision say first."""

import io

import pytest
from rich.console import Console

from finjepa_pipeline import console
from finjepa_pipeline.publishing.decision import BookDecision
from finjepa_pipeline.report.decision import SAME_RETURN, decision_page


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
