"""The jobs and checks of the backtest stage: what is asked for is there, and a test without a verdict is never called ok."""

from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from finjepa_pipeline import cli, commands
from finjepa_pipeline.backtest.assets import check_result
from finjepa_pipeline.backtest.results import TESTS
from finjepa_pipeline.definitions import defs


def test_every_job_resolves_and_the_night_leaves_the_long_ones_out():
    jobs = {job.name: {node.name for node in job.all_node_defs} for job in defs.resolve_all_job_defs()}
    assert "leakage_audit" in jobs["audit"]
    assert "fold_backtests" in jobs["fold_backtests_job"]
    assert {"planner_backtests", "leaderboard"} <= jobs["nightly"]
    assert not jobs["nightly"] & {"leakage_audit", "walk_forward_plan", "fold_models", "fold_backtests"}


@pytest.mark.parametrize(
    ("passed", "text", "severity", "verdict"),
    [
        (True, "sound", "ERROR", "passed"),
        (False, "it reads tomorrow", "ERROR", "failed"),
        (None, "not enough data: 40 sessions are too few", "WARN", "not enough data"),
        (None, "not run: no cluster", "ERROR", "not run"),
    ],
)
def test_not_enough_data_is_a_warning_in_dagster_and_never_passed(passed, text, severity, verdict):
    result = check_result("planner_backtests", "delay", passed, text)
    assert (result.passed, result.severity.name) == (passed is True, severity)
    assert result.metadata["status"].value == verdict


@pytest.mark.parametrize(
    ("checks", "status", "says"),
    [
        ([(test, True, "sound") for test in TESTS], 0, "All tests passed."),
        ([("delay", None, "not enough data: 40 sessions")], 0, "delay (not enough data)"),
        ([("delay", None, "not run: no cluster")], 1, "delay"),
        ([("delay", False, "collapses")], 1, "FAILED"),
    ],
)
def test_the_audit_command_says_what_has_no_verdict(monkeypatch, checks, status, says):
    monkeypatch.setattr(commands, "_run", lambda *_: SimpleNamespace(checks=checks))
    done = CliRunner().invoke(cli.main, ["audit"])
    assert says in done.output
    assert ("All tests passed" in done.output) == (len(checks) == len(TESTS))
    assert ("No verdict: fill_lag (not run)" in done.output) == (len(checks) == 1 and status == 0)
    assert (done.exit_code == 0) == (status == 0)
