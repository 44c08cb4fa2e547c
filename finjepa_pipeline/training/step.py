"""A training inside a step of Dagster: its processes under Pipes, its lineage, and its curves while it runs."""

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.batches import shortage, split_dates, ways_out
from finjepa_model.data.panel import Panel
from finjepa_pipeline.backtest.metrics import SHORTEST
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.live import watched
from finjepa_pipeline.training.provenance import provenance
from finjepa_pipeline.training.run import checkpoint_id, train_checkpoint
from finjepa_pipeline.warehouse import Warehouse


def train_in_step(
    context: dg.AssetExecutionContext,
    home: Settings,
    warehouse: Warehouse,
    panel: Panel,
    config: FinJEPAConfig,
    where: Mapping[str, Any],
    *,
    resume: bool = True,
    make_current: bool = True,
    curves: bool = True,
    fold: str | None = None,
) -> tuple[Path, bool]:
    """Train, or find that it has been done; see `train_checkpoint`.

    Args:
        where: processes, threads and device, as `ranks` finds them.
        curves: whether losses and monitors become observations of the asset. Trainings that share an asset and a partition
            would draw theirs over each other.
        fold: partition of the walk-forward that the checkpoint is for, and of the asset.

    Returns:
        The checkpoint folder, and whether it was there already.
    """

    def tell(record: dict[str, Any]) -> None:
        numbers = {f"{record['kind']}_{k}": v for k, v in record.items() if isinstance(v, float) and math.isfinite(v)}
        metadata = {"step": record["step"], **numbers}
        context.log_event(dg.AssetObservation(context.asset_key, partition=fold, metadata=metadata))

    def launch(command: list[str], environment: Mapping[str, str]) -> None:
        context.log.info("training starts in processes of its own")
        run_folder = home.checkpoints / f"{checkpoint_id(config, panel)}.run"
        steps = config.training.epochs * config.training.steps_per_epoch
        with watched(run_folder, steps, tell) if curves else contextlib.nullcontext():
            dg.PipesSubprocessClient().run(context=context, command=command, env=environment)

    made_by = provenance(context, warehouse, panel, config, where, fold)
    if fold is None and (warning := without_intervals(len(panel.dates), config)):
        context.log.warning(warning)
    return train_checkpoint(home, config, panel, made_by, launch, where["processes"], resume, make_current)


def without_intervals(sessions: int, config: FinJEPAConfig) -> str:
    """Whether a block will be too short for an interval, and what makes it longer: known before minutes are spent."""
    least = SHORTEST + 1  # the first session of a block has no return
    short = shortage(split_dates(sessions, config), config, least)
    return (
        f"no interval, no p-value and no claim of skill will be given: {short}; {ways_out(sessions, config, least)}"
        if short
        else ""
    )
