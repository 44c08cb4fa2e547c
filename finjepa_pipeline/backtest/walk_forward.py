"""The walk-forward from the terminal: the same jobs as in the UI, one run a partition, in the order of their dependencies."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finjepa_pipeline.backtest.walk_forward_assets import RIVALS

Run = Callable[[str, Mapping[str, Mapping[str, Any]], str | None], Any]  # job, ops, partition: a JobReport


def run_walk_forward(
    run: Run, plan: Mapping[str, Any], strategies: Sequence[str], judging: Mapping[str, Any]
) -> dict[str, Any]:
    """Plan, train a model a fold, judge every strategy on every fold, and pool.

    Args:
        plan: config of `walk_forward_plan`; strategies: planners, controls and strategies of the user, beside the baselines.
        judging: config of `fold_backtests`.

    Returns:
        Metadata of the pooled leaderboard.
    """
    config = {**plan, "strategies": list(strategies)}
    planned = run("walk_forward_plan_job", {"walk_forward_plan": config}, None).assets["walk_forward_plan"]
    for fold in planned["partitions"]:
        run("fold_models_job", {}, fold)
        for strategy in (RIVALS, *strategies):
            run("fold_backtests_job", {"fold_backtests": dict(judging)}, f"{fold}|{strategy}")
    return run("walk_forward_leaderboard_job", {}, None).assets["walk_forward_leaderboard"]
