"""The walk-forward from the terminal: the same jobs as in the UI, one run a partition, in the order of their dependencies."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finjepa_pipeline.backtest.walk_forward_assets import RIVALS
from finjepa_pipeline.settings import Settings

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
    folds = planned["partitions"]
    tried = [f"{fold}|{strategy}" for fold in folds for strategy in (RIVALS, *strategies)]
    # the first run does the work of all, side by side, and the others find it done; models only on a cluster
    on_cluster = Settings.from_env().ray_address is not None
    for fold in folds:
        together = folds if on_cluster and fold == folds[0] else []
        run("fold_models_job", {"fold_models": {"together": together}}, fold)
    for partition in tried:
        together = tried if partition == tried[0] else []
        run("fold_backtests_job", {"fold_backtests": {**judging, "together": together}}, partition)
    pooled = {"walk_forward_leaderboard": {"plan": planned["plan"]}}
    return run("walk_forward_leaderboard_job", pooled, None).assets["walk_forward_leaderboard"]
