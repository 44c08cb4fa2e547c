"""The court's jobs: what is asked for is there, and the night does not hold trials or walk forward."""

from finjepa_pipeline.definitions import defs


def test_every_job_resolves_and_the_night_leaves_the_long_ones_out():
    jobs = {job.name: {node.name for node in job.all_node_defs} for job in defs.resolve_all_job_defs()}
    assert "audit_trial" in jobs["audit"]
    assert "fold_backtests" in jobs["fold_backtests_job"]
    assert {"planner_backtests", "leaderboard"} <= jobs["nightly"]
    assert not jobs["nightly"] & {"audit_trial", "walk_forward_plan", "fold_models", "fold_backtests"}
