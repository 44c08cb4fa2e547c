"""From walks to the leaderboard and its pages: every number has its interval, every trial counts, nothing is made twice."""

import re
from dataclasses import replace

import duckdb
import numpy as np
import pytest
from handmade_panel import noise, write_panel

from finjepa_model.config import PortfolioConfig
from finjepa_pipeline.backtest.baselines import EveryDecision
from finjepa_pipeline.backtest.engine import Court, walk
from finjepa_pipeline.backtest.evidence import Expectations, calibration
from finjepa_pipeline.backtest.history_page import write_history
from finjepa_pipeline.backtest.leaderboard import build_leaderboard, leaderboard_rows
from finjepa_pipeline.backtest.replay import attribution, cost_grid
from finjepa_pipeline.backtest.report import verdict
from finjepa_pipeline.backtest.store import Case, Evidence, ensure_tables, write_failure, write_walks
from finjepa_pipeline.backtest.strategies import Cash, EqualWeight

CASE = Case("c1", "d1", "test", "court1")
DATES = np.datetime64("2021-03-01") + np.arange(3)


@pytest.fixture
def judged(tmp_path) -> duckdb.DuckDBPyConnection:
    """1/N, cash, and two `planners`: one follows its panel's planted winner, one is random."""
    returns_DA = noise(600, 4, seed=1)
    returns_DA[:, 2] += 0.006
    court = Court.over(write_panel(tmp_path, returns_DA), (30, 600), PortfolioConfig(), stride=5, n_assets=4, window=20)
    rng = np.random.default_rng(0)
    strategies = [
        EqualWeight(),
        Cash(),
        EveryDecision("winner", lambda view: np.eye(4)[2]),
        EveryDecision("random", lambda view: rng.random(4)),
    ]
    walks = [walk(strategy, court) for strategy in strategies]
    con = duckdb.connect()
    ensure_tables(con)
    write_walks(con, CASE, Evidence(walks, replays={**cost_grid(walks, court), **attribution(walks, court)}))
    return con


def test_a_planted_winner_has_evidence_and_the_number_of_trials_takes_it_away(judged):
    build_leaderboard(judged, "c1", "d1", labels={"fold": "single", "run_id": "r1"})
    rows = {row["strategy"]: row for row in leaderboard_rows(judged, "c1")}
    assert rows["winner"]["excess_low"] > 0
    assert rows["winner"]["best_baseline"] == "equal_weight"
    assert rows["winner"]["break_even_bps"] is None or rows["winner"]["break_even_bps"] > 50
    assert rows["random"]["excess_low"] < 0 < rows["random"]["excess_high"]
    assert rows["cash"]["sharpe"] is None
    assert rows["equal_weight"]["effective_n"] == pytest.approx(4, rel=0.01)
    assert {row["run_id"] for row in rows.values()} == {"r1"}
    said = judged.execute("SELECT trials, pbo, len(pbo_logits), spa_p FROM court_inference").fetchone()
    assert said is not None
    assert said[0] == 2  # 1/N and cash were chosen beforehand
    assert said[2] == 12870
    assert said[1] < 0.1
    assert said[3] < 0.05

    for k in range(40):  # forty more were tried, and broke
        write_failure(judged, replace(CASE, court=f"court{k + 2}"), "winner", DATES)
    judged.execute("DELETE FROM leaderboard")
    build_leaderboard(judged, "c1", "d1", untried=5)
    after = {row["strategy"]: row for row in leaderboard_rows(judged, "c1")}
    assert judged.execute("SELECT trials FROM court_inference").fetchone() == (47,)
    assert after["winner"]["dsr"] < rows["winner"]["dsr"]
    assert after["winner"]["psr"] == rows["winner"]["psr"]


def test_a_trial_has_the_dates_of_its_walk_also_where_the_strategy_failed(judged):
    write_failure(judged, replace(CASE, court="court2"), "winner", DATES)
    query = (
        "SELECT start_date::VARCHAR, end_date::VARCHAR FROM backtest_trials WHERE strategy = 'winner' ORDER BY court"
    )
    assert judged.execute(query).fetchall() == [("2020-02-01", "2021-08-22"), ("2021-03-01", "2021-03-03")]


def test_the_same_walks_are_measured_once(judged):
    assert build_leaderboard(judged, "c1", "d1")
    assert not build_leaderboard(judged, "c1", "d1")


def test_the_history_keeps_every_checkpoint(judged, tmp_path):
    build_leaderboard(judged, "c1", "d1")
    judged.execute("UPDATE leaderboard SET checkpoint = 'c0'")
    build_leaderboard(judged, "c1", "d1")
    judged.execute("UPDATE leaderboard SET run_id = 'a1b2c3d4-5e6f'")
    (tmp_path / "checkpoints" / "c1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "c1" / "lineage.json").write_text("{}")
    path = tmp_path / "reports" / "leaderboard.html"
    assert write_history(judged, path, tmp_path / "checkpoints", "http://ui:3000") == 8
    page = path.read_text()
    assert page.count("<tr>") == 9
    links = re.findall(r'<a href="([^"]+)">', page)
    assert {link for link in links if link.startswith("http")} == {
        "http://ui:3000/runs/a1b2c3d4-5e6f", "http://ui:3000/assets/feature_panel",
    }  # fmt: skip
    lineage = [link for link in links if not link.startswith("http")]
    assert len(lineage) == 4  # c0 is in no folder
    assert all((path.parent / link).is_file() for link in lineage)
    assert "http" not in re.sub(r'<a href="[^"]+">', "", page), "the page needs nothing but itself"


@pytest.mark.parametrize(
    ("low", "high", "dsr", "words"),
    [
        (0.1, 0.9, 0.97, "evidence of skill, also after all"),
        (0.1, 0.9, 0.5, "does not stand up to the number of trials"),
        (-0.5, 0.4, 0.9, "no evidence of skill"),
        (-0.9, -0.1, 0.1, "evidence against skill"),
    ],
)
def test_the_verdict_says_what_the_interval_and_the_trials_allow(low, high, dsr, words):
    row = {"strategy": "cem", "excess_sharpe": 0.3, "excess_low": low, "excess_high": high, "dsr": dsr}
    assert words in verdict([row], {"cem"})


def test_a_calibrated_planner_has_slope_one_and_an_overconfident_one_less():
    rng = np.random.default_rng(0)
    imagined_D = 0.01 * rng.standard_normal(2000)
    realised_D = imagined_D + 0.02 * rng.standard_normal(2000)
    dates_D, volatility_D = np.arange(2000), np.full(2000, 0.02)
    honest = calibration(Expectations(dates_D, imagined_D, volatility_D, realised_D))
    assert honest.slope == pytest.approx(1, abs=0.1)
    assert honest.covered == pytest.approx(0.954, abs=0.02)
    assert calibration(Expectations(dates_D, 3 * imagined_D, volatility_D, realised_D)).slope < 0.5
