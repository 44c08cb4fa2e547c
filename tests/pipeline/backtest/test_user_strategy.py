"""A strategy of the user's own stands before the same setup, and a new version of it is a new trial."""

import os
from types import SimpleNamespace

import pytest
from handmade_panel import noise, write_panel
from handmade_setup import setup_of

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.backtest import strategies
from finjepa_pipeline.backtest.engine import simulate
from finjepa_pipeline.backtest.strategies import load_strategy

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


def test_a_strategy_that_returns_no_action_is_one_clear_line(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def decide(view):\n    return [0.5, 0.5]\n")
    with pytest.raises(FinJEPAError, match=r"returned list.*PortfolioAction"):
        load_strategy(f"{file}:decide").decide(SimpleNamespace(date="2020-01-02"), None)  # type: ignore[arg-type]


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
