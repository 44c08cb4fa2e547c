"""A block that is too short gives no interval, no p-value and no claim, wherever it is told."""

from dataclasses import replace

import duckdb
import numpy as np
import pytest

from finjepa_model.config import PortfolioConfig
from finjepa_pipeline.backtest.engine import BacktestSetup, simulate
from finjepa_pipeline.backtest.inference import forecast_quality
from finjepa_pipeline.backtest.leaderboard import build_leaderboard, leaderboard_history, leaderboard_rows, report_of
from finjepa_pipeline.backtest.metrics import SHORTEST
from finjepa_pipeline.backtest.results import BlockKey, write_block
from finjepa_pipeline.backtest.strategies import EveryDecision, one_over_n
from finjepa_pipeline.publishing.card import card_of
from finjepa_pipeline.publishing.gate import Champion
from finjepa_pipeline.report.backtest import write_history, write_report
from finjepa_pipeline.warehouse import migrate
from tests.pipeline.backtest.handmade_panel import noise, write_panel

BOUNDS = (
    "sharpe_low", "sharpe_high", "excess_low", "excess_high", "probability_better", "best_excess_low", "best_excess_high", "psr",
    "dsr", "detectable",
)  # fmt: skip


def judged_over(tmp_path, sessions: int, con: duckdb.DuckDBPyConnection | None = None) -> duckdb.DuckDBPyConnection:
    """1/N and a planner with a huge, planted edge, on so many sessions of both blocks."""
    returns_DA = noise(sessions + 40, 4, seed=1)
    returns_DA[:, 2] += 0.02
    block = (39, 39 + sessions + 1)
    setup = BacktestSetup.over(
        write_panel(tmp_path / "p", returns_DA), block, PortfolioConfig(), stride=5, n_assets=4, window=20
    )
    walks = [simulate(one_over_n(), setup), simulate(EveryDecision("mppi", lambda view: np.eye(4)[2]), setup)]
    found = {"winner": forecast_quality(lambda view: np.arange(4.0), setup, setup.views())}
    judged = {"validation": walks, "test": [walks[0], replace(walks[1], forecasts=found)]}
    con = con or duckdb.connect()
    migrate(con)
    for name, results in judged.items():
        write_block(con, BlockKey("c1", "d1", name, f"{name}-setup"), results)
    build_leaderboard(con, "c1", "d1")
    return con


@pytest.mark.parametrize("sessions", [55, SHORTEST - 1])
def test_a_short_block_has_no_interval_in_any_table(tmp_path, sessions):
    con = judged_over(tmp_path, sessions)
    rows = [row for row in leaderboard_rows(con, "c1") if row["strategy"] == "mppi"]
    assert len(rows) == 2
    for row in rows:
        assert row["n_days"] == sessions
        assert row["sharpe"] > 5  # it is measured, and nothing is claimed
        assert {name: row[name] for name in BOUNDS} == dict.fromkeys(BOUNDS)
    whole = con.execute("SELECT pbo, len(pbo_logits), spa_p FROM backtest_inference").fetchall()
    assert set(whole) == {(None, 0, None)}
    assert con.execute("SELECT low, high, t, ratio FROM forecast_quality").fetchall() == [(None,) * 4] * 2


def test_a_block_of_the_least_length_has_them_all(tmp_path):
    con = judged_over(tmp_path, SHORTEST)
    [row] = [row for row in leaderboard_rows(con, "c1") if row["strategy"] == "mppi" and row["block"] == "test"]
    assert row["excess_low"] > 0
    assert all(row[name] is not None for name in BOUNDS)


def test_report_history_and_card_say_too_short(tmp_path, home, monkeypatch):
    monkeypatch.setattr("finjepa_pipeline.backtest.leaderboard.quality_summary", lambda con: [])
    checkpoint = home.add_checkpoint("c1")
    with home.warehouse.connect() as con:
        judged_over(tmp_path, 55, con)
        exhibits = report_of(con, checkpoint, "d1", "mppi")
        write_history(tmp_path / "history.html", leaderboard_history(con), home.settings.checkpoints, "http://ui")
        card = card_of(con, home.settings, "t", Champion("c1", "mppi"), {}, None)
    assert exhibits.headline.startswith("No evidence of skill")
    write_report(tmp_path / "report.html", "c1", exhibits, None)
    report = (tmp_path / "report.html").read_text()
    assert "95 % band" not in report
    assert all("too short" in text for text in (exhibits.headline, report, card))
    assert not any("±" in text for text in (report, card))
