"""The champion gate: who replaces whom, and that its verdicts are kept."""

import json

import pytest

from finjepa_pipeline.backtest.results import BEFORE_THE_GATE
from finjepa_pipeline.publishing.gate import Finding, Verdict

WEAK = 0.5  # forecasts of log volatility that are so far off are worse than the analytic baseline


@pytest.fixture
def weak_home(home):
    """A home whose champion forecasts badly; sound challengers replace it."""
    home.add_checkpoint("aaaa", level=WEAK)
    home.add_backtest("aaaa", 0.0005)
    home.promote("aaaa", "finjepa_cem")
    return home


def _challenge(home, name: str = "bbbb", *, level: float = 0.0, mean: float = 0.0, write: bool = True, **backtest):
    """The verdict on a new checkpoint whose forecasts are off by `level` and whose planner earns `mean` a day."""
    home.add_checkpoint(name, seed=1, level=level)
    home.add_backtest(name, mean, **backtest)
    return home.judge(name, backtest.get("data_version", "data1"), write=write)


def _finding(verdict: Verdict, name: str) -> Finding:
    [found] = [finding for finding in verdict.findings if finding.name == name]
    return found


def test_forecasts_decide_and_returns_do_not(home):
    assert _challenge(home, "wild", level=WEAK, mean=0.01).verdict == "refused"  # worse than the analytic baseline
    assert _challenge(home, "aaaa").verdict == "promoted"
    for name, level in (("equal", 0.0), ("nearly", 0.02)):
        verdict = _challenge(home, name, level=level, mean=0.01)
        assert (verdict.verdict, verdict.champion) == ("kept", "aaaa")
        assert "no better, beyond chance" in verdict.reasons[0]
    home.add_checkpoint("aaaa", level=WEAK)  # as if it had forecast badly
    before = home.rows("FROM champions")
    dry = _challenge(home, "cccc", mean=-0.01, write=False)
    assert dry.verdict == "promoted"
    assert home.rows("FROM champions") == before
    verdict = home.judge("cccc")
    assert (verdict.verdict, verdict.champion, verdict.strategy) == ("promoted", "cccc", "finjepa_cem")
    assert verdict.t_champion is not None
    assert verdict.t_champion < -2
    [stored] = home.rows("SELECT t_champion, t_baseline FROM champions WHERE checkpoint = 'cccc'")
    assert stored == (verdict.t_champion, verdict.t_baseline)


def test_the_same_challenger_writes_nothing_new(champion_home):
    first = _challenge(champion_home)
    before = champion_home.rows("FROM champions")
    again = champion_home.judge("bbbb")
    assert (first.new, again.new) == (True, False)
    assert not champion_home.judge("aaaa").new
    assert again.verdict == first.verdict
    assert champion_home.rows("FROM champions") == before


def test_collapsed_or_incomplete_checkpoint_is_refused_whatever_it_forecasts(weak_home):
    weak_home.add_checkpoint("bbbb", seed=1, collapsed=True)
    incomplete = weak_home.add_checkpoint("cccc", seed=2)
    (incomplete / "lineage.json").unlink()
    for name, word in (("bbbb", "collapsed"), ("cccc", "lineage.json")):
        weak_home.add_backtest(name, 0.002)
        verdict = weak_home.judge(name)
        assert verdict.verdict == "refused"
        assert word in verdict.reasons[0]
    assert weak_home.champion.checkpoint == "aaaa"


def _block_of_validation(home, name: str, days: tuple[str, str]) -> None:
    path = home.settings.checkpoints / name / "lineage.json"
    lineage = json.loads(path.read_text())
    path.write_text(json.dumps(lineage | {"blocks": lineage["blocks"] | {"validation": list(days)}}))


def test_champion_and_challenger_meet_only_on_sessions_that_neither_was_trained_on(weak_home):
    assert _challenge(weak_home, write=False).verdict == "promoted"
    _block_of_validation(weak_home, "aaaa", ("2015-03-01", "2016-12-30"))
    for last, verdict in (("2016-01-31", "promoted"), ("2015-04-30", "kept")):
        _block_of_validation(weak_home, "bbbb", ("2015-01-01", last))
        found = weak_home.judge("bbbb", write=False)
        assert found.verdict == verdict
    assert "only 61 validation sessions" in found.reasons[0]
    assert "training.validation_share" in found.reasons[0]
    assert _finding(found, "forecasts").verdict == "not enough data"


def test_a_champion_that_can_no_longer_act_is_replaced_by_any_sound_challenger(champion_home):
    config = champion_home.settings.checkpoints / "aaaa" / "config.json"
    config.write_text(config.read_text().replace('"dim"', '"older_width"'))
    verdict = _challenge(champion_home)
    assert (verdict.verdict, verdict.champion) == ("promoted", "bbbb")
    assert "older_width" in verdict.reasons[0]


def test_broken_prices_and_a_lost_backtest_forbid_a_promotion(weak_home):
    def judged(name: str, data_version: str = "data1"):
        verdict = weak_home.judge(name, data_version)
        return verdict.verdict, [finding.name for finding in verdict.findings if finding.forbids]

    for name in ("bbbb", "dddd"):
        weak_home.add_checkpoint(name, seed=1)
        weak_home.add_backtest(name, 0.0015)
    weak_home.rows("DELETE FROM leaderboard WHERE checkpoint = 'bbbb' AND strategy = 'equal_weight'")
    assert judged("bbbb") == ("refused", ["backtest"])
    with weak_home.warehouse.connect() as con:
        weak_home.add_prices(con, "data3", broken=True)
    for table in ("leaderboard", "backtest_returns"):
        weak_home.rows(f"UPDATE {table} SET data_version = 'data3' WHERE checkpoint = 'dddd'")
    assert judged("dddd", "data3") == ("refused", ["data"])
    stored = weak_home.rows("SELECT DISTINCT checkpoint, name FROM champion_checks WHERE passed = false ORDER BY ALL")
    assert stored == [("dddd", "data")]


def test_a_challenger_that_was_not_audited_or_failed_a_test_is_refused_and_the_champion_stays(weak_home):
    verdict = _challenge(weak_home, audited=False)
    assert (verdict.verdict, verdict.champion) == ("refused", "aaaa")
    assert len(verdict.reasons) == len(BEFORE_THE_GATE)
    assert all("not run" in reason for reason in verdict.reasons)
    weak_home.add_audit("bbbb", "finjepa_mppi")  # of another planner: it does not count
    weak_home.add_audit("bbbb", future_invariance="it reads tomorrow")
    verdict = weak_home.judge("bbbb")
    assert (verdict.verdict, verdict.champion) == ("refused", "aaaa")
    assert verdict.reasons == ("audit: future_invariance: it reads tomorrow",)
    stored = weak_home.rows("SELECT reasons FROM champions WHERE checkpoint = 'bbbb' ORDER BY created_at")
    assert stored[-1] == verdict.reasons
    weak_home.add_audit("bbbb")
    verdict = weak_home.judge("bbbb")
    assert verdict.reasons == ("audit: future_invariance: it reads tomorrow (it passed later, and a failure stands)",)
    weak_home.rows("UPDATE audit_results SET passed = true")
    assert weak_home.judge("bbbb").verdict == "promoted"


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
def test_what_failed_in_the_data_refuses_every_planner_of_a_checkpoint(weak_home, test, who, refused):
    weak_home.add_audit("bbbb", who, **{test: "the future moves the universe"})
    verdict = _challenge(weak_home)  # a later audit of finjepa_cem, which acts, found nothing
    assert verdict.verdict == ("refused" if refused else "promoted")
    assert verdict.reasons == (f"audit: {test}: the future moves the universe (audit of {who})",) or not refused
    assert _challenge(weak_home, "cccc").verdict == ("promoted" if refused else "kept")  # it is not concerned


@pytest.mark.parametrize(
    ("test", "finding", "outcome"),
    [
        ("delay", "not enough data: 40 sessions are too few", "promoted"),
        ("null_market", "not enough data: 40 sessions are too few", "promoted"),
        ("future_invariance", "not enough data: 40 sessions are too few", "refused"),
        ("null_market", "not run: no cluster", "refused"),
    ],
)
def test_a_test_without_a_verdict_is_neither_passed_nor_failed(weak_home, test, finding, outcome):
    """It blocks where it was not run or is exact: a home that is too short for one decision has nothing to publish."""
    _challenge(weak_home, write=False)
    weak_home.rows(f"UPDATE audit_results SET passed = NULL, finding = '{finding}' WHERE test = '{test}'")
    verdict = weak_home.judge("bbbb")
    found = _finding(verdict, f"audit: {test}")
    assert (found.passed, found.verdict, verdict.verdict) == (None, finding.split(":")[0], outcome)
    if outcome == "refused":
        assert verdict.reasons == (f"audit: {test}: {finding}",)


def test_a_test_that_nobody_has_to_run_forbids_a_promotion_where_it_failed(weak_home):
    verdict = _challenge(weak_home, write=False)
    planted = _finding(verdict, "audit: known_truth")
    assert (planted.passed, planted.blocking, planted.verdict, verdict.verdict) == (None, False, "not run", "promoted")
    weak_home.rows(
        """INSERT INTO audit_results BY NAME SELECT * REPLACE ('known_truth' AS test, false AS passed) FROM audit_results
        WHERE checkpoint = 'bbbb' AND test = 'delay'"""
    )
    assert weak_home.judge("bbbb").verdict == "refused"


def test_a_champion_whose_live_forecasts_have_drifted_gives_way_to_an_equal_challenger(champion_home, monkeypatch):
    assert _challenge(champion_home).verdict == "kept"

    def drifts(who: str) -> None:
        words = {who: (True, "intervals are too narrow")}
        found = lambda records, checkpoint: words.get(checkpoint, (None, "no live record"))  # noqa: E731
        monkeypatch.setattr("finjepa_pipeline.publishing.gate.checkpoint_drift", found)

    drifts("aaaa")
    verdict = champion_home.judge("bbbb", write=False)
    assert (verdict.verdict, "too narrow" in verdict.reasons[0]) == ("promoted", True)
    drifts("bbbb")
    assert champion_home.judge("bbbb", write=False).reasons == ("live record: intervals are too narrow",)
