"""A training inside a step of Dagster: its lineage, and its curves while it runs."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from finjepa_model.checkpoint import read_config
from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import read_json
from finjepa_model.training.run_folder import read_metrics
from finjepa_pipeline.report.page import duration
from finjepa_pipeline.report.training import TrainingPage, training_page
from finjepa_pipeline.runs import rounded
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

_POINTS = 200  # of a curve of training losses, at most; every evaluation is reported


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
    *,
    curves: bool = True,
    fold: str | None = None,
) -> tuple[Path, bool]:
    """Train, or find that it has been done; see `train_checkpoint`. While it trains its page is rewritten.

    Args:
        where: processes, threads and device, as `compute.ranks` finds them.
        curves: whether losses and monitors become observations of the asset. Trainings that share an asset and a partition
            would draw theirs over each other.
        fold: of a walk-forward, that the checkpoint is for.

    Returns:
        The checkpoint folder, and whether it was there already.
    """

    steps, told = config.training.epochs * config.training.steps_per_epoch, set[int]()

    def report(record: dict[str, Any]) -> None:
        numbers = {name: value for name, value in record.items() if isinstance(value, float) and math.isfinite(value)}
        kind, step = record["kind"], record["step"]
        if kind == "train" and not told:
            told.add(step)
            left = (steps - step) * config.training.batch_size / numbers["samples_per_second"]
            context.log.info(f"step {step:,} of {steps:,}: about {duration(left)} left, evaluations aside")
        context.log.info(f"{kind} step {step}: {', '.join(f'{name} {value:.4g}' for name, value in numbers.items())}")
        values = rounded({f"{kind}_{name}": value for name, value in numbers.items()})
        metadata = {"step": step, "page": dg.MetadataValue.url(home.address_of(page.path)), **values}
        context.log_event(dg.AssetObservation(context.asset_key, partition=fold, metadata=metadata))

    made_by = lineage_of_run(context, warehouse, panel, config, where, fold)
    checkpoint = home.checkpoints / checkpoint_id(config, panel)
    page = TrainingPage(training_page(home.reports, checkpoint.name), run_folder_of(checkpoint), config)
    report_new = new_records(run_folder_of(checkpoint), steps, report)
    if not checkpoint.is_dir():
        context.log.info(announcement(home.checkpoints, config))
        context.log.info(f"its page: {page.path}")

    def watch() -> None:
        page.update()
        if curves:
            report_new()

    try:
        folder, reused = train_checkpoint(home, config, panel, made_by, where, watch)
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
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            ZeroDivisionError,
            FinJEPAError,
        ):  # of another version, or half removed
            continue
    return f"{text}; the first of its kind here, so the first steps tell how long it takes"


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
