"""The TD branch from the command line: a utility is named, a decision follows, and the leaderboard has it."""

import json

import duckdb
import pytest

from tests.system.product import quick_training, works, write_prices

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]
# a forecast of a random market is worth no trade, so the bold one asks for more than growth
BOLD, SHY = "log_growth + 0.1*net", "log_growth - 500*variance - 0.1*turnover"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with a checkpoint that has the branch."""
    folder = tmp_path_factory.mktemp("td")
    source = ["--data_source", "files", "--path", str(write_prices(folder / "prices"))]
    td = ["--branch", "jepa,td", "--set", "td.steps=60", "--set", "td.dates=16", "--set", "td.evaluate_every=30"]
    works(folder / "home", "train", *source, *quick_training(), *td)
    return folder / "home"


def test_the_checkpoint_tells_how_the_branch_was_trained(home):
    current = json.loads((home / "checkpoints" / "current.json").read_text())["checkpoint"]
    metrics = json.loads((home / "checkpoints" / current / "metrics.json").read_text())["td"]
    records = (home / "checkpoints" / f"{current}.run" / "td" / "metrics.jsonl").read_text().splitlines()
    scores = [r["score"] for r in map(json.loads, records) if r["kind"] == "td_validation"]
    assert len(scores) == 3
    assert metrics["policy"]["score"] == max(scores)
    assert min(metrics["fit"].values()) > 0.99


def test_a_named_utility_is_decided_at_once(home):
    volatility, checkpoint = [], json.loads((home / "checkpoints" / "current.json").read_text())["checkpoint"]
    for utility in (BOLD, SHY):
        options = ["--planner", "td", "--utility", utility, "--checkpoint", str(home / "checkpoints" / checkpoint)]
        decision = json.loads(works(home, "decide", *options, "--json"))
        assert abs(sum(decision["weights"].values()) - 1) <= 1e-6
        volatility.append(decision["expected_volatility"])
    assert volatility[1] < volatility[0]


def test_the_terms_of_a_utility_are_listed(home):
    printed = works(home, "decide", "--utility", "help")
    assert all(term in printed for term in ("log_growth", "turnover", "drawdown", "concentration"))


def test_the_leaderboard_has_the_branch_with_each_utility(home):
    for options in ([], ["--utility", BOLD], ["--utility", SHY]):
        works(home, "backtest", "--planner", "td", *options)
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as con:
        rows = dict(con.execute("SELECT strategy, annual_volatility FROM leaderboard WHERE block = 'test'").fetchall())
    assert "td" in rows
    assert rows[f"td | {SHY}"] < rows[f"td | {BOLD}"]
