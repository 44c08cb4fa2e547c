"""A training inside a step of Dagster: its lineage, and its curves while it runs."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.panel import Panel
from finjepa_model.training.run_folder import read_metrics
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import checkpoint_id, run_folder_of, train_checkpoint
from finjepa_pipeline.training.lineage import lineage_of_run
from finjepa_pipeline.warehouse import Warehouse

_POINTS = 200  # of a curve of training losses, at most; every evaluation is reported


class ModelChoice(dg.Config):
    """The config of a model: a preset, and what differs from it."""

    preset: str = Field(default="small", description="tiny, small, base or large.")
    overrides: dict[str, str] = Field(
        default_factory=dict, description='Dotted config keys and their values as text, such as {"model.dim": "256"}.'
    )


def train_in_step(
    context: dg.AssetExecutionContext,
    home: Settings,
    warehouse: Warehouse,
    panel: Panel,
    config: FinJEPAConfig,
    where: Mapping[str, Any],
    *,
    curves: bool = True,
    fold: str | None = None,
) -> tuple[Path, bool]:
    """Train, or find that it has been done; see `train_checkpoint`.

    Args:
        where: processes, threads and device, as `compute.ranks` finds them.
        curves: whether losses and monitors become observations of the asset. Trainings that share an asset and a partition
            would draw theirs over each other.
        fold: of a walk-forward, that the checkpoint is for.

    Returns:
        The checkpoint folder, and whether it was there already.
    """

    def report(record: dict[str, Any]) -> None:
        numbers = {name: value for name, value in record.items() if isinstance(value, float) and math.isfinite(value)}
        kind, step = record["kind"], record["step"]
        context.log.info(f"{kind} step {step}: {', '.join(f'{name} {value:.4g}' for name, value in numbers.items())}")
        metadata = {"step": step} | {f"{kind}_{name}": value for name, value in numbers.items()}
        context.log_event(dg.AssetObservation(context.asset_key, partition=fold, metadata=metadata))

    made_by = lineage_of_run(context, warehouse, panel, config, where, fold)
    context.log.info("training starts in processes of its own")
    run_folder = run_folder_of(home.checkpoints / checkpoint_id(config, panel))
    steps = config.training.epochs * config.training.steps_per_epoch
    watch = new_records(run_folder, steps, report) if curves else lambda: None
    return train_checkpoint(home, config, panel, made_by, where, watch)


def new_records(run_folder: Path, total_steps: int, report: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
    """What reports, at every call, the records of a run folder that are new since the one before; of the losses of training
    one in `total_steps` / 200 steps."""
    seen = {record["kind"]: record["step"] for record in read_metrics(run_folder)}
    spacing = max(total_steps // _POINTS, 1)

    def report_new() -> None:
        for record in read_metrics(run_folder):
            kind, step = record["kind"], record["step"]
            if step >= seen.get(kind, 0) + (spacing if kind == "train" else 1):
                seen[kind] = step
                report(record)

    return report_new
