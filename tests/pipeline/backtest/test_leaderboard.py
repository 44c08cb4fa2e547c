"""From walks to the leaderboard and its pages: every number has its interval, every trial counts, nothing is made twice."""

import re
from dataclasses import replace

import duckdb
import numpy as np
import pytest
from handmade_panel import noise, write_panel
from handmade_setup import setup_of

from finjepa_pipeline.backtest import leaderboard
from finjepa_pipeline.backtest.engine import StrategyResult, replayed, simulate
from finjepa_pipeline.backtest.inference import deflated_sharpe
from finjepa_pipeline.backtest.leaderboard import (
    build_leaderboard,
    leaderboard_history,
    leaderboard_rows,
    report_of,
    traded_assets,
)
from finjepa_pipeline.backtest.metrics import has_skill, headline
from finjepa_pipeline.backtest.results import BlockKey, write_block, write_configuration
from finjepa_pipeline.backtest.strategies import Cash, EveryDecision, one_over_n
from finjepa_pipeline.report.backtest import write_history, write_report
from finjepa_pipeline.warehouse import insert, migrate, now

KEY = BlockKey("c1", "d1", "test", "setup1")
DATES = np.datetime64("2021-03-01") + np.arange(3)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[StrategyResult]:
    """1/N, cash, and two `planners`: one follows its panel's planted winner, one is random."""
    returns_DA = noise(600, 4, seed=1)
    returns_DA[:, 2] += 0.006
    setup = setup_of(write_panel(tmp_path_factory.mktemp("panel"), returns_DA))
    rng = np.random.default_rng(0)
    strategies = [
        one_over_n(),
        Cash(),
        EveryDecision("winner", lambda view: np.eye(4)[2]),
        EveryDecision("random", lambda view: rng.random(4)),
    ]
    return replayed([simulate(strategy, setup) for strategy in strategies], setup)


@pytest.fixture
def judged(results) -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    migrate(con)
    write_block(con, KEY, results)
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
    said = judged.execute("SELECT trials, pbo, len(pbo_logits), spa_p FROM backtest_inference").fetchone()
    assert said is not None
    assert said[0] == 2  # 1/N and cash were chosen beforehand
    assert said[2] == 12870
    assert said[1] < 0.1
    assert said[3] < 0.05

    for k in range(40):  # forty more were tried, and broke
        write_configuration(judged, replace(KEY, setup=f"setup{k + 2}"), "winner", DATES)
    judged.execute("DELETE FROM leaderboard")
    build_leaderboard(judged, "c1", "d1", untried=5)
    after = {row["strategy"]: row for row in leaderboard_rows(judged, "c1")}
    assert judged.execute("SELECT trials FROM backtest_inference").fetchone() == (47,)
    assert after["winner"]["dsr"] < rows["winner"]["dsr"]
    assert after["winner"]["psr"] == rows["winner"]["psr"]


def trials(con: duckdb.DuckDBPyConnection) -> int:
    build_leaderboard(con, "c1", "d1")
    return con.execute("SELECT trials FROM backtest_inference").fetchall()[0][0]


def test_configurations_are_counted_by_their_dates_and_each_result_once(judged):
    write_configuration(judged, replace(KEY, setup="setup4"), "failed", DATES)
    query = "SELECT start_date::VARCHAR, end_date::VARCHAR, n_days FROM backtest_trials WHERE strategy = ?"
    assert judged.execute(query, ["winner"]).fetchall() == [("2020-02-01", "2021-08-22", 569)]
    assert judged.execute(query, ["failed"]).fetchall() == [("2021-03-01", "2021-03-03", 0)]
    judged.execute("DELETE FROM backtest_trials WHERE strategy = 'failed'")
    assert trials(judged) == 2
    again = """INSERT INTO backtest_trials BY NAME SELECT * REPLACE ('setup2' AS setup, 'd2' AS data_version) FROM backtest_trials
    WHERE strategy = 'winner'"""
    judged.execute(again)  # the same result on the same days: nothing else was tried
    assert trials(judged) == 2
    elsewhere = again.replace("'setup2'", "'setup3'").replace("'d2'", "'d3'")
    judged.execute(f"{elsewhere} AND setup = 'setup1'")
    other = "UPDATE backtest_trials SET block = 'validation', excess_sharpe = 0.01, checkpoint = 'c2' WHERE setup = 'setup3'"
    judged.execute(other)
    assert trials(judged) == 3, "a validation block of other data on these days"
    judged.execute(
        "UPDATE backtest_trials SET start_date = '2023-01-01', end_date = '2024-01-01' WHERE setup = 'setup3'"
    )
    assert trials(judged) == 2, "no day in common"
    judged.execute("UPDATE backtest_trials SET start_date = NULL, end_date = NULL WHERE setup = 'setup3'")
    assert trials(judged) == 3, "nobody knows its days"


def test_what_is_deflated_is_the_return_over_one_over_n(judged):
    build_leaderboard(judged, "c1", "d1")
    frame = judged.sql("PIVOT backtest_returns ON strategy USING first(net_return) GROUP BY date ORDER BY date").pl()
    over = {name: (frame[name] - frame["equal_weight"]).to_numpy() for name in ("winner", "random")}
    ratios = np.array([r.mean() / r.std(ddof=1) for r in over.values()])
    stored = judged.execute(
        "SELECT strategy, excess_sharpe FROM backtest_trials WHERE excess_sharpe IS NOT NULL"
    ).fetchall()
    assert dict(stored) == pytest.approx({"winner": ratios[0], "random": ratios[1]} | dict(stored))
    rows = {row["strategy"]: row for row in leaderboard_rows(judged, "c1")}
    assert rows["random"]["dsr"] == pytest.approx(deflated_sharpe(over["random"], ratios), abs=1e-9)
    assert rows["equal_weight"]["dsr"] is None


def test_the_history_keeps_every_checkpoint(judged, tmp_path):
    build_leaderboard(judged, "c1", "d1")
    judged.execute("UPDATE leaderboard SET checkpoint = 'c0'")
    build_leaderboard(judged, "c1", "d1")
    judged.execute("UPDATE leaderboard SET run_id = 'a1b2c3d4-5e6f'")
    (tmp_path / "checkpoints" / "c1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "c1" / "lineage.json").write_text("{}")
    path = tmp_path / "reports" / "leaderboard.html"
    write_history(path, leaderboard_history(judged), tmp_path / "checkpoints", "http://ui:3000")
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


def row(strategy: str, low: float | None, high: float | None, dsr: float | None, block: str = "test") -> dict:
    dates = {"start_date": "2020-01-02", "end_date": "2022-12-28"}
    kind = "user" if ":" in strategy else "planner"
    return dates | {
        "strategy": strategy, "block": block, "kind": kind, "excess_sharpe": 0.3, "excess_low": low, "excess_high": high,
        "dsr": dsr,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "dsr", "words"),
    [
        (0.1, 0.9, 0.97, "Evidence of skill"),
        (0.1, 0.9, 0.94, "No evidence of skill"),
        (0.1, 0.9, None, "No evidence of skill"),
        (-0.5, 0.4, 0.99, "No evidence of skill"),
        (-0.9, -0.1, 0.1, "Worse than 1/N"),
        (None, None, 0.99, "too short for an interval"),
    ],
)
def test_the_headline_asks_for_the_interval_and_the_deflated_ratio(low, high, dsr, words):
    said = headline([row("cem", low, high, dsr)], "cem")
    assert words in said
    assert said.startswith("Evidence") == has_skill(row("cem", low, high, dsr))


def test_the_headline_speaks_of_the_planner_that_acts_and_not_of_the_luckiest():
    rows = [row("cem", 0.5, 0.9, 0.99), row("mppi", -0.4, 0.2, 0.3), row("rules:mine@1", -0.1, 0.5, 0.5)]
    rows.append(row("mppi", 0.2, 0.6, 0.9, block="validation"))
    said = headline(rows, "mppi")
    assert said.startswith("No evidence of skill: the Sharpe ratio of mppi")
    assert "On the validation block (2020-01-02 to 2022-12-28), the difference for mppi" in said
    assert "rules:mine@1" in said
    assert "cem" not in said
    assert not has_skill(row("mppi", 0.2, 0.6, 0.99, block="validation"))


def test_the_report_begins_with_the_planner_that_acts_and_tells_what_has_no_verdict(judged, tmp_path, monkeypatch):
    monkeypatch.setattr(leaderboard, "quality_summary", lambda con: [])
    for table in ("backtest_returns", "backtest_decisions"):
        judged.execute(
            f"INSERT INTO {table} BY NAME SELECT * REPLACE ('validation' AS block, 'setup0' AS setup) FROM {table} "
            "WHERE strategy IN ('random', 'equal_weight')"
        )
    for test, passed, text in (
        ("delay", False, "collapses"), ("delay", True, "fades"), ("null_market", None, "not enough data: two markets"),
    ):  # fmt: skip
        key = {"checkpoint": "c1", "strategy": "random", "data_version": "d1", "run_id": "r", "created_at": now()}
        insert(judged, "audit_results", key, {"test": [test], "finding": [text], "passed": [passed], "value": [0.0]})
    build_leaderboard(judged, "c1", "d1")
    (tmp_path / "c1").mkdir()
    (tmp_path / "c1" / "metrics.json").write_text('{"readout": {"weighted": 0.0, "t_value": 0.42}}')
    write_report(tmp_path / "index.html", "c1", report_of(judged, tmp_path / "c1", "d1", "qp"), None)
    page = (tmp_path / "index.html").read_text()
    said = re.findall('<p class="headline">(.*?)</p>', page)[0]
    assert said.startswith("The model expects the same return of every asset")
    assert "No evidence of skill: the Sharpe ratio of random minus that of 1/N" in said  # and not of `winner`
    assert "the difference for random was" in said
    for words in ("FAILED", "passed, after a failure that stands", "not enough data"):
        assert words in page
    contents = re.findall('<a href="#(.+?)">', page)
    assert contents == re.findall('<h2 id="(.+?)">', page), "each heading once, in order"
    assert {"leaderboard-test-block", "months-of-random", "beside-1-n", "drawdown"} <= set(contents)
    shown = re.findall(r"<td>[^<]*random[^<]*</td><td>(.*?)</td><td>(.*?)</td>", page.replace("<wbr>", ""))
    assert re.fullmatch(r"[+-]\d\.\d\d", shown[0][0])
    assert re.fullmatch(r"[+-]\d\.\d\d to [+-]\d\.\d\d", shown[0][1]), "the interval stands beside the difference"


@pytest.mark.parametrize(
    ("eligible", "columns", "says"),
    [
        (505, ["close", "volume"], "2 of 505 .* most traded"),
        (505, ["close"], "2 of 505 .* longest"),
        (2, ["close"], "all 2"),
    ],
)
def test_it_says_how_many_assets_are_traded_and_which(eligible: int, columns: list[str], says: str):
    with duckdb.connect() as con:
        migrate(con)
        assert traded_assets(con, "model") == ""
        for day in ("2020-01-02", "2020-01-09"):
            con.execute(
                "INSERT INTO backtest_decisions SELECT 'model', 'equal_weight', 'test', $day::DATE, 'S' || i, i / 3, 1, 0, 0, "
                "'data1', 'c' FROM range(3) AS t(i)",
                {"day": day},
            )
        con.execute("INSERT INTO universe SELECT DATE '2020-01-09', 'S' || i FROM range($n) AS t(i)", {"n": eligible})
        con.execute(
            "INSERT INTO revisions BY NAME SELECT 1 AS revision, 1 AS feed_id, 'data1' AS data_version, $columns AS columns",
            {"columns": columns},
        )
        con.execute("INSERT INTO active_view VALUES (1, 1)")
        assert re.search(says, traded_assets(con, "model"))
