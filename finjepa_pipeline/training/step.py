"""A training inside a step of Dagster, and its page while it runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from finjepa_model.checkpoint import read_config
from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import read_json
from finjepa_pipeline.report.page import duration
from finjepa_pipeline.report.training import TrainingPage, training_page
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import (
    checkpoint_here,
    checkpoint_id,
    is_of_kind,
    run_folder_of,
    train_checkpoint,
)
from finjepa_pipeline.training.lineage import lineage_of_run
from finjepa_pipeline.warehouse import Warehouse


class ModelChoice(dg.Config):
    """The config of a model: a preset, and what differs from it."""

    preset: str = Field(default="small", description="tiny, small, base or large, e.g. base")
    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="Config keys and values that differ from the preset, e.g. {model.dim: 256, loss.recipe: ema}",
    )


def train_in_step(
    context: dg.AssetExecutionContext,
    home: Settings,
    warehouse: Warehouse,
    panel: Panel,
    config: FinJEPAConfig,
    where: Mapping[str, Any],
    fold: str | None = None,
) -> tuple[Path, bool]:
    """Train, or find that it has been done; see `train_checkpoint`. While it trains its page is rewritten.

    Args:
        where: processes, threads and device, as `compute.ranks` finds them.
        fold: of a walk-forward, that the checkpoint is for.
    """
    made_by = lineage_of_run(context, warehouse, panel, config, where, fold)
    checkpoint = home.checkpoints / checkpoint_id(config, panel)
    page = TrainingPage(training_page(home.reports, checkpoint.name), run_folder_of(checkpoint), config)
    if not checkpoint.is_dir():
        context.log.info(f"{announcement(home.checkpoints, config)}; its page: {page.path}")
    try:
        folder, reused = train_checkpoint(home, config, panel, made_by, where, page.update)
    except BaseException:
        page.end("It ended before its last step; the same command goes on from its last saved state.")
        raise
    page.end("Done.")
    return folder, reused


def without_champion(settings: Settings, warehouse: Warehouse, panel: Panel, config: FinJEPAConfig) -> FinJEPAConfig:
    """The config with a checkpoint in place of `training.initial=champion`: the newest champion on other prices than these, so
    that a repeated run begins with the same one; random weights where it is of another kind, or there is none."""
    if config.training.initial != "champion":
        return config
    query = (
        "SELECT checkpoint FROM main.champions WHERE verdict = 'promoted' AND data_version <> $data_version "
        "ORDER BY created_at DESC, rowid DESC LIMIT 1"
    )
    with warehouse.connect() as con:
        names = con.execute(query, {"data_version": panel.manifest["data_version"]}).fetchall()
    folders = [checkpoint_here(settings, name) for (name,) in names]
    found = [folder.name for folder in folders if folder is not None and is_of_kind(folder, config)]
    return config.override({"training.initial": found[0] if found else '""'})


def announcement(checkpoints: Path, config: FinJEPAConfig) -> str:
    """How long a training will take, by the newest one of such a model here; how much it is where there was none."""
    training = config.training
    steps, work = training.epochs * training.steps_per_epoch, (training.batch_size, training.n_assets)
    text = f"training: {steps:,} steps, at most, of {work[0]} dates with up to {work[1]} assets"
    for file in sorted(checkpoints.glob("*/metrics.json"), key=lambda file: -file.stat().st_mtime):
        try:
            made, then = read_json(file)["training"], read_config(file.parent)
            if then.model == config.model and (then.training.batch_size, then.training.n_assets) == work:
                return f"{text}; about {duration(steps * made['seconds'] / made['steps'])} here, as the one before took"
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, FinJEPAError):
            continue  # of another version, or half removed
    return f"{text}; the first of its kind here, so its page tells how long it takes"
