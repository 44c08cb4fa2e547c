"""The champion gate: who replaces whom, and that its verdicts are kept."""

import json

import numpy as np
import pytest

from finjepa_pipeline.backtest.results import BEFORE_THE_GATE
from finjepa_pipeline.publishing.gate import Finding, Verdict, current_champion, judge, probability_better, summary


def _judge(home, name: str, data_version: str = "data1", **options) -> Verdict:
    with home.warehouse.connect() as con:
        return judge(con, home.settings.checkpoints / name, data_version, **options)


def _challenge(home, mean: float, name: str = "bbbb", *, write: bool = True, **backtest) -> Verdict:
    """The verdict on a new checkpoint whose planner earns `mean` a day."""
    home.add_checkpoint(name, seed=1)
    home.add_backtest(name, mean, **backtest)
    return _judge(home, name, backtest.get("data_version", "data1"), write=write)


def _champion(home) -> str | None:
    with home.warehouse.connect() as con:
        champion = current_champion(con)
    return champion.checkpoint if champion else None


def _finding(verdict: Verdict, name: str) -> Finding:
    [found] = [finding for finding in verdict.findings if finding.name == name]
    return found


def test_first_sound_challenger_is_promoted_a_worse_or_equal_one_is_not_and_a_better_one_replaces_it(champion_home):
    assert _champion(champion_home) == "aaaa"
    for name, mean in (("cccc", 0.0), ("dddd", 0.0005)):
        verdict = _challenge(champion_home, mean, name)
        assert (verdict.verdict, verdict.champion) == ("kept", "aaaa")
    assert _champion(champion_home) == "aaaa"
    before = champion_home.rows("FROM champions")
    dry = _challenge(champion_home, 0.0015, write=False)
    assert dry.verdict == "promoted"
    assert champion_home.rows("FROM champions") == before
    verdict = _judge(champion_home, "bbbb")
    assert (verdict.verdict, verdict.champion, verdict.strategy) == ("promoted", "bbbb", "finjepa_cem")
    assert verdict.probability_better is not None
    assert verdict.probability_better > 0.9
    assert _champion(champion_home) == "bbbb"


def test_the_qp_acts_where_it_was_tested_whatever_another_planner_earned_on_validation(home):
    home.add_checkpoint("aaaa")
    for strategy, mean in (("finjepa_cem", 0.002), ("qp", 0.0005)):
        home.add_backtest("aaaa", mean, strategy=strategy)
    assert _judge(home, "aaaa").strategy == "qp"


def test_the_same_challenger_writes_nothing_new(champion_home):
    first = _challenge(champion_home, 0.0)
    before = champion_home.rows("FROM champions")
    again = _judge(champion_home, "bbbb")
    assert (first.new, again.new) == (True, False)
    assert not _judge(champion_home, "aaaa").new
    assert again.verdict == first.verdict
    assert champion_home.rows("FROM champions") == before


def test_collapsed_or_incomplete_checkpoint_is_refused_whatever_it_earned(champion_home):
    champion_home.add_checkpoint("bbbb", seed=1, collapsed=True)
    incomplete = champion_home.add_checkpoint("cccc", seed=2)
    (incomplete / "lineage.json").unlink()
    for name, word in (("bbbb", "collapsed"), ("cccc", "lineage.json")):
        champion_home.add_backtest(name, 0.002)
        verdict = _judge(champion_home, name)
        assert verdict.verdict == "refused"
        assert word in verdict.reasons[0]
    assert _champion(champion_home) == "aaaa"


def _block_of_validation(home, name: str, days: tuple[str, str]) -> None:
    path = home.settings.checkpoints / name / "lineage.json"
    lineage = json.loads(path.read_text())
    path.write_text(json.dumps(lineage | {"blocks": lineage["blocks"] | {"validation": list(days)}}))


def test_champion_and_challenger_meet_only_on_sessions_that_neither_was_trained_on(champion_home):
    """The stored returns of an older version may be of any sessions: the dates in both lineages decide."""
    older_data = _challenge(champion_home, 0.0015, "cccc", days=250, data_version="data2", write=False)
    assert (older_data.verdict, older_data.common_days) == ("promoted", 250)
    _challenge(champion_home, 0.0015, write=False)
    _block_of_validation(champion_home, "aaaa", ("2015-01-31", "2016-12-30"))
    _block_of_validation(champion_home, "bbbb", ("2014-01-02", "2015-09-27"))
    assert _judge(champion_home, "bbbb", write=False).common_days == 240
    _block_of_validation(champion_home, "bbbb", ("2014-01-02", "2015-03-31"))
    verdict = _judge(champion_home, "bbbb", write=False)
    assert (verdict.verdict, verdict.common_days) == ("kept", 60)
    assert "only 60 validation sessions" in verdict.reasons[0]
    assert "training.validation_share" in verdict.reasons[0]


def test_a_champion_that_stays_in_cash_can_be_beaten():
    earning_T = np.random.default_rng(0).normal(0.001, 0.01, 300)
    assert probability_better(np.zeros(300), earning_T)[0] > 0.5
    assert probability_better(earning_T, earning_T)[0] == 0.0


def test_a_champion_that_can_no_longer_act_is_replaced_by_any_sound_challenger(champion_home):
    config = champion_home.settings.checkpoints / "aaaa" / "config.json"
    config.write_text(config.read_text().replace('"dim"', '"older_width"'))
    verdict = _challenge(champion_home, 0.0)  # worse than the champion was
    assert (verdict.verdict, verdict.champion) == ("promoted", "bbbb")
    assert "older_width" in verdict.reasons[0]


def test_broken_prices_a_lost_baseline_and_a_worse_planner_forbid_a_promotion(champion_home):
    def judged(name: str, data_version: str = "data1"):
        verdict = _judge(champion_home, name, data_version)
        return verdict.verdict, [finding.name for finding in verdict.findings if finding.forbids]

    for name in ("bbbb", "cccc", "dddd"):
        champion_home.add_checkpoint(name, seed=1)
        champion_home.add_backtest(name, 0.0015)
    champion_home.rows("DELETE FROM leaderboard WHERE checkpoint = 'bbbb' AND strategy = 'equal_weight'")
    assert judged("bbbb") == ("refused", ["baseline"])
    champion_home.rows(
        "UPDATE leaderboard SET excess_high = -0.1 WHERE checkpoint = 'cccc' AND strategy = 'finjepa_cem'"
    )
    assert judged("cccc") == ("refused", ["baseline"])
    with champion_home.warehouse.connect() as con:
        champion_home.add_prices(con, "data3", broken=True)
    for table in ("leaderboard", "backtest_returns"):
        champion_home.rows(f"UPDATE {table} SET data_version = 'data3' WHERE checkpoint = 'dddd'")
    assert judged("dddd", "data3") == ("refused", ["data"])
    stored = champion_home.rows(
        "SELECT DISTINCT checkpoint, name FROM champion_checks WHERE passed = false ORDER BY ALL"
    )
    assert stored == [("cccc", "baseline"), ("dddd", "data")]


def test_a_challenger_that_was_not_audited_or_failed_a_test_is_refused_and_the_champion_stays(champion_home):
    verdict = _challenge(champion_home, 0.0015, audited=False)
    assert (verdict.verdict, verdict.champion) == ("refused", "aaaa")
    assert len(verdict.reasons) == len(BEFORE_THE_GATE)
    assert all("not run" in reason for reason in verdict.reasons)
    champion_home.add_audit("bbbb", "finjepa_mppi")  # of another planner: it does not count
    champion_home.add_audit("bbbb", future_invariance="it reads tomorrow")
    verdict = _judge(champion_home, "bbbb")
    assert (verdict.verdict, verdict.champion) == ("refused", "aaaa")
    assert verdict.reasons == ("audit: future_invariance: it reads tomorrow",)
    stored = champion_home.rows("SELECT reasons FROM champions WHERE checkpoint = 'bbbb' ORDER BY created_at")
    assert stored[-1] == verdict.reasons
    champion_home.add_audit("bbbb")
    verdict = _judge(champion_home, "bbbb")
    assert verdict.reasons == ("audit: future_invariance: it reads tomorrow (it passed later, and a failure stands)",)
    champion_home.rows("UPDATE audit_results SET passed = true")
    assert _judge(champion_home, "bbbb").verdict == "promoted"


@pytest.mark.parametrize(
    ("test", "who", "refused"),
    [
        ("future_invariance", "finjepa_mppi", True),
        ("fill_lag", "finjepa_mppi", True),
        ("label_alignment", "mine.py:decide", True),
        ("future_invariance", "all planners", True),
        ("future_invariance", "mine.py:decide", False),  # what differed is a decision of that strategy
        ("null_market", "finjepa_mppi", False),
        ("delay", "finjepa_mppi", False),
    ],
)
def test_what_failed_in_the_data_refuses_every_planner_of_a_checkpoint(champion_home, test, who, refused):
    champion_home.add_audit("bbbb", who, **{test: "the future moves the universe"})
    verdict = _challenge(champion_home, 0.0015)  # a later audit of finjepa_cem, which acts, found nothing
    assert verdict.verdict == ("refused" if refused else "promoted")
    assert verdict.reasons == (f"audit: {test}: the future moves the universe (audit of {who})",) or not refused
    assert _challenge(champion_home, 0.0025, "cccc").verdict == "promoted"  # another checkpoint is not concerned


@pytest.mark.parametrize(
    ("test", "finding", "outcome"),
    [
        ("delay", "not enough data: 40 sessions are too few", "promoted"),
        ("null_market", "not enough data: 40 sessions are too few", "promoted"),
        ("future_invariance", "not enough data: 40 sessions are too few", "refused"),
        ("null_market", "not run: no cluster", "refused"),
    ],
)
def test_a_test_without_a_verdict_is_neither_passed_nor_failed(champion_home, test, finding, outcome):
    """It blocks where it was not run or is exact: a home that is too short for one decision has nothing to publish."""
    _challenge(champion_home, 0.0015, write=False)
    champion_home.rows(f"UPDATE audit_results SET passed = NULL, finding = '{finding}' WHERE test = '{test}'")
    verdict = _judge(champion_home, "bbbb")
    found = _finding(verdict, f"audit: {test}")
    assert (found.passed, found.verdict, verdict.verdict) == (None, finding.split(":")[0], outcome)
    if outcome == "promoted":
        assert f"not enough data: audit: {test}" in verdict.reasons[-1]
    else:
        assert verdict.reasons == (f"audit: {test}: {finding}",)


def test_that_all_checks_passed_is_only_said_where_they_were_run_and_did(champion_home):
    verdict = _challenge(champion_home, 0.0015, write=False)
    planted = _finding(verdict, "audit: known_truth")
    assert (planted.passed, planted.blocking, planted.verdict) == (None, False, "not run")
    assert "audit: known_truth" in verdict.reasons[-1]
    assert "all" not in verdict.reasons[-1]
    passed = [Finding(name, True, "sound") for name in ("files", "data")]
    assert summary(passed) == "all 2 checks passed"
    failed = Finding("overfitting", False, "0.7", blocking=False)
    assert summary([*passed, failed]) == "no check forbids it; 2 of 3 passed (failed: overfitting)"
    champion_home.rows(
        """INSERT INTO audit_results BY NAME SELECT * REPLACE ('known_truth' AS test, false AS passed) FROM audit_results
        WHERE checkpoint = 'bbbb' AND test = 'delay'"""
    )
    assert _judge(champion_home, "bbbb").verdict == "refused"  # nobody has to ask for it, but a failure stands


@pytest.mark.parametrize(
    ("change", "words"), [("excess_sharpe = NULL", "never moved"), ("excess_low = NULL", "too short for an interval")]
)
def test_a_planner_that_never_moved_or_a_short_block_has_no_verdict_against_one_over_n(champion_home, change, words):
    _challenge(champion_home, 0.0015, write=False)
    champion_home.rows(f"UPDATE leaderboard SET {change} WHERE checkpoint = 'bbbb' AND strategy = 'finjepa_cem'")
    verdict = _judge(champion_home, "bbbb", write=False)
    found = _finding(verdict, "baseline")
    assert (found.verdict, verdict.verdict) == ("not enough data", "promoted")
    assert words in found.detail
