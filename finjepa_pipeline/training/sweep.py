"""Trainings that differ in some keys of the config, or in their seed: an ablation grid, or an ensemble."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from finjepa_model.config import preset
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import read_json
from finjepa_model.training.run_folder import read_metrics
from finjepa_pipeline import compute
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.report.markdown import cell
from finjepa_pipeline.runs import asset
from finjepa_pipeline.settings import SettingsResource
from finjepa_pipeline.training.checkpoints import checkpoint_id, for_panel, run_folder_of, train_side_by_side
from finjepa_pipeline.training.step import ModelChoice, train_in_step
from finjepa_pipeline.warehouse import Warehouse


class SweepConfig(ModelChoice):
    """What is trained, and how often; all trainings share the overrides."""

    grid: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="Config keys and the values to try, e.g. {loss.recipe: [ema, both], model.dim: [64, 96]}",
    )
    seeds: list[int] = Field(
        default_factory=lambda: [0], description="Every point of the grid is trained with each, e.g. [0, 1, 2]"
    )
    metric: str = Field(
        default="loss",
        description="Number of the validation records, lower is better; another one for a grid over loss.*, e.g. prediction",
    )
    stop_early: bool = Field(
        default=True, description="On a cluster, end what falls behind; False for an ensemble, which wants every seed."
    )


@asset("model", "pytorch", deps=["feature_panel"], pool="gpu")
def model_sweep(
    context: dg.AssetExecutionContext, config: SweepConfig, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """Checkpoints of a grid of configs and seeds, with their validation losses. On a Ray cluster they train side by side, and
    what falls behind is stopped early (ASHA); on one machine each is trained to its end, one after the other. None of them
    becomes the newest checkpoint: choose one, or several, by their ids."""
    home = settings.get()
    panel = Panel.open(current_panel(home))
    wanted = {
        name: for_panel(preset(config.preset).override({**config.overrides, **changes}), panel)
        for name, changes in variants(config.grid, config.seeds).items()
    }
    where = compute.ranks(home, 1)
    failed = train_side_by_side(home, panel, wanted, where, context.log.info, config.metric, config.stop_early)
    if all(failed.values()):
        raise FinJEPAError(f"every training of the sweep failed; the first: {next(iter(failed.values()))}")
    rows, checkpoints = [], {}
    for name, one in wanted.items():
        if failed[name]:
            run_folder = run_folder_of(home.checkpoints / checkpoint_id(one, panel))
            last = [record for record in read_metrics(run_folder) if record["kind"] == "validation"][-1:]
            value, step = (compute.metric_value(last[0], config.metric), last[0]["step"]) if last else (float("inf"), 0)
            rows.append((value, name, step, failed[name]))
            continue
        folder, _ = train_in_step(context, home, warehouse, panel, one, where, curves=False)
        metrics = read_json(folder / "metrics.json")
        value = compute.metric_value(metrics["validation"] | metrics["diagnostics"], config.metric)
        checkpoints[name] = folder.name
        rows.append((value, name, metrics["training"]["steps"], folder.name))
    shown = [[name, f"{value:.4g}", str(step), end] for value, name, step, end in sorted(rows)]
    head = [["training", f"validation {config.metric}", "steps", "checkpoint"], ["---", "--:", "--:", "---"]]
    return dg.MaterializeResult(
        metadata={
            "trainings": dg.MetadataValue.md("\n".join(f"| {' | '.join(map(cell, row))} |" for row in head + shown)),
            "rows": dg.MetadataValue.json(shown),
            "checkpoints": dg.MetadataValue.json(checkpoints),
            "stopped_early": len(wanted) - len(checkpoints),
            "panel": panel.content_hash,
        }
    )


def variants(grid: Mapping[str, Sequence[Any]], seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Config overrides of every point of the grid with every seed, by a name that says what is special.

    Raises:
        FinJEPAError: if there is nothing to train, or the seed is in the grid.
    """
    if "training.seed" in grid:
        raise FinJEPAError("training.seed in the grid: seeds have a list of their own, `seeds`")
    if not seeds or not all(grid.values()):
        raise FinJEPAError("a sweep needs a seed, and a value for every key of its grid")
    found = {}
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        for seed in dict.fromkeys(seeds):
            name = ", ".join([*(f"{key}={value}" for key, value in point.items()), f"seed {seed}"])
            found[name] = {**point, "training.seed": str(seed)}
    return found
