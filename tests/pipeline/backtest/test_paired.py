"""Who acts for a checkpoint: the operator's choice, unless another planner has evidence; and what parts are worth adds up."""

import duckdb
import numpy as np
import polars as pl
import pytest

from finjepa_pipeline.backtest.inference import parts_of
from finjepa_pipeline.backtest.leaderboard import acting_planner
from finjepa_pipeline.warehouse import insert, migrate, now

SESSIONS = 800


@pytest.fixture
def con():
    with duckdb.connect() as con:
        migrate(con)
        yield con


def add_planner(con, name: str, gain: float = 0.0, seed: int = 0, sessions: int = SESSIONS, versions: int = 1) -> None:
    """A planner that shares the market's noise, and earns `gain` a day with noise of its own."""
    market_T, own_T = 0.01 * np.random.default_rng(0).standard_normal((2, sessions))
    own_T = 0.002 * np.random.default_rng(seed).standard_normal(sessions)
    own_T -= own_T.mean()  # exactly `gain`
    net_T, dates_T = market_T + gain + own_T, np.datetime64("2015-01-01") + np.arange(sessions)
    key = {"checkpoint": "c1", "data_version": "d1", "block": "validation", "setup": "s1"}
    insert(
        con, "backtest_returns", key | {"strategy": name}, {"date": dates_T, "net_return": net_T, "gross_return": net_T}
    )
    span = {"start_date": dates_T[0].item(), "end_date": dates_T[-1].item(), "created_at": now()}
    ratios = [gain + 0.001 * version for version in range(versions)]
    insert(con, "backtest_trials", key | {"strategy": name} | span, {"excess_sharpe": ratios})


def acts(con, chosen: str = "qp") -> str | None:
    return acting_planner(con, "c1", "d1", chosen).strategy


def test_luck_on_validation_changes_nothing_and_evidence_does(con):
    add_planner(con, "qp", seed=1)
    add_planner(con, "mppi", gain=0.00005, seed=2)  # half a standard error
    assert acts(con) == "qp"
    assert acts(con, "mppi") == "mppi"
    add_planner(con, "cem", gain=0.0005, seed=3)
    found = acting_planner(con, "c1", "d1", "qp")
    assert found.strategy == "cem"
    assert "Net utility of mppi minus that of qp" in found.text
    assert "no evidence" in found.text


def test_evidence_counts_what_was_tried(con):
    add_planner(con, "qp", seed=1)
    add_planner(con, "cem", gain=0.0003, seed=3)
    assert acts(con) == "cem"
    add_planner(con, "mppi", gain=-0.001, seed=2, versions=2000)
    assert acts(con) == "qp"


def test_a_short_block_gives_no_evidence_and_no_choice_among_several_that_were_not_chosen(con):
    add_planner(con, "mppi", sessions=100)
    assert acts(con) == "mppi"  # the only one
    add_planner(con, "qp | log_growth - 5*variance", gain=0.01, seed=1, sessions=100)
    assert acts(con) == "qp | log_growth - 5*variance"
    assert acts(con, "mppi") == "mppi"
    assert acts(con, "cem") is None
    assert acting_planner(con, "c1", "d2", "qp").strategy is None


def test_parts_add_up_and_a_part_that_helps_is_seen():
    random, sessions = np.random.default_rng(0), 800
    noise_T = 0.01 * random.standard_normal(sessions)
    worth = {
        "equal_weight": 0.0,
        "qp with ewma": 2e-4,
        "qp with untrained": 2e-4,
        "qp": 8e-4,
        "qp with shuffled_actions": 0.0,
    }
    net = {name: noise_T + gain + 1e-3 * random.standard_normal(sessions) for name, gain in worth.items()}
    net["qp with ledoit_wolf"] = 1.5 * net["qp"]
    dates = np.datetime64("2015-01-01") + np.arange(sessions)
    frames = [pl.DataFrame({"strategy": name, "date": dates, "net_return": x}) for name, x in net.items()]
    parts = {one.part: one for one in parts_of(pl.concat(frames), "qp")}
    steps = [parts[name].utility.mean for name in ("planner", "risk model, nothing fitted", "learned part")]
    assert sum(steps) == pytest.approx(parts["all of it"].utility.mean)
    assert parts["learned part"].utility.low > 0
    nothing = parts["risk model, nothing fitted"].utility
    assert nothing.low < 0 < nothing.high
    calmer = parts["risk model, against Ledoit-Wolf"].volatility
    assert calmer.low < 1 / 1.5 - 1 + 0.06  # by a third, to the first order a little more than half of 1 - 1 / 1.5^2
    assert calmer.high < 0
    assert parts_of(pl.concat(frames).head(100), "qp") == []
