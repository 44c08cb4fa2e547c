"""Assets of the training stage: `world_model`, `world_model_evaluation`, `risk_scorecard` and `model_sweep`."""

import re
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from pydantic import Field

from finjepa_model import FinJEPA
from finjepa_model.config import preset
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import checkpoint_splits
from finjepa_model.files import read_json
from finjepa_model.training.risk_scorecard import QLIKE, scorecard
from finjepa_model.training.run_folder import read_metrics
from finjepa_pipeline import compute
from finjepa_pipeline.features.assets import panel_of_run
from finjepa_pipeline.report.markdown import numbers_table, table, training_curves
from finjepa_pipeline.report.risk import Card, in_words, tables, write_scorecard
from finjepa_pipeline.report.training import training_page
from finjepa_pipeline.runs import asset, made_in_run
from finjepa_pipeline.settings import Settings, SettingsResource
from finjepa_pipeline.training.checkpoints import (
    checkpoint_here,
    current_checkpoint,
    for_panel,
    make_current,
    training_code_version,
)
from finjepa_pipeline.training.step import ModelChoice, train_in_step, without_champion
from finjepa_pipeline.training.sweep import model_sweep
from finjepa_pipeline.warehouse import Warehouse

_METADATA = re.compile(r"[^a-z0-9]+")
_WITH_CHECKPOINT = ("challenger_audit", "planner_backtests", "world_model")
_SPEED = ("best_step", "samples_per_second", "gpu_memory_bytes")


class TrainConfig(ModelChoice):
    """What is trained."""

    processes: int | None = Field(
        default=None, description="Ranks; one for each GPU, or one on the CPU, when empty, e.g. 2"
    )


@asset("model", "pytorch", deps=["feature_panel"], pool="gpu", code_version=training_code_version())
def world_model(
    context: dg.AssetExecutionContext, config: TrainConfig, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """The trained world model: a checkpoint folder, named by the hash of its config, panel and code. It is trained in
    processes of its own; the same config on the same panel is not trained twice."""
    home = settings.get()
    panel = Panel.open(panel_of_run(context, home))
    asked = for_panel(preset(config.preset).override(config.overrides), panel)
    wanted = without_champion(home, warehouse, panel, asked)
    where = compute.ranks(home, config.processes)
    folder, reused = train_in_step(context, home, warehouse, panel, wanted, where)
    make_current(home, folder)
    metrics, page = read_json(folder / "metrics.json"), training_page(home.reports, folder.name)
    return dg.MaterializeResult(
        metadata={
            "checkpoint": folder.name,
            "reused": reused,
            "path": dg.MetadataValue.path(str(folder)),
            "config": dg.MetadataValue.json(wanted.to_dict()),
            **(
                {"page": dg.MetadataValue.url(home.address_of(page))} if page.is_file() else {}
            ),  # none where it came from a store
            "curves": _curves(folder),
            "validation_loss": metrics["validation"]["loss"],
            "steps": metrics["training"]["steps"],
            "seconds": metrics["training"]["seconds"],
            "device": metrics["training"]["device"],
            **{name: metrics["training"][name] for name in _SPEED if name in metrics["training"]},
            "bytes": sum(file.stat().st_size for file in folder.iterdir()),
            "panel": panel.content_hash,
        },
        data_version=dg.DataVersion(folder.name),
    )


@asset(
    "model",
    "pytorch",
    deps=["world_model"],
    check_specs=[
        dg.AssetCheckSpec(
            "latents_have_not_collapsed",
            asset="world_model_evaluation",
            blocking=True,
            description="None of the five collapse monitors speaks of a collapse (docs/concepts/model.md).",
        ),
    ],
)
def world_model_evaluation(
    context: dg.AssetExecutionContext, settings: SettingsResource
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """Losses and collapse monitors on the validation block, and the curves of the training."""
    folder = checkpoint_of_run(context, settings.get())
    metrics = read_json(folder / "metrics.json")
    diagnostics = metrics["diagnostics"]
    yield dg.MaterializeResult(
        metadata={
            "checkpoint": folder.name,
            "curves": _curves(folder),
            "monitors": dg.MetadataValue.md(numbers_table(diagnostics)),
            "validation": dg.MetadataValue.md(numbers_table(metrics["validation"])),
            "readout": dg.MetadataValue.md(numbers_table(metrics.get("readout", {}))),
            **{name: value for name, value in diagnostics.items() if name != "collapsed"},
        },
        data_version=dg.DataVersion(folder.name),
    )
    yield dg.AssetCheckResult(
        passed=not diagnostics["collapsed"],
        check_name="latents_have_not_collapsed",
        asset_key="world_model_evaluation",
        description=f"collapse: {diagnostics['collapse']}",
        metadata={name: value for name, value in diagnostics.items() if name != "collapsed"},
    )


@asset(
    "model",
    "pytorch",
    deps=["world_model"],
    check_specs=[
        dg.AssetCheckSpec(
            "risk_forecasts_are_no_worse_than_fixed_har",
            asset="risk_scorecard",
            description="On the validation block, in QLIKE of volatility over 21 sessions, beyond chance (t below -2).",
        ),
    ],
)
def risk_scorecard(
    context: dg.AssetExecutionContext, settings: SettingsResource
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """How good the checkpoint's forecasts of volatility, covariance and quantiles are beside textbook ones, on the validation and
    the test block, with a page."""
    home = settings.get()
    folder = checkpoint_of_run(context, home)
    card, page = score_checkpoint(home, folder, Panel.open(panel_of_run(context, home)))
    shown = {title: dg.MetadataValue.md(table(columns, rows)) for title, columns, rows in tables(card)}
    yield dg.MaterializeResult(
        metadata={
            "checkpoint": folder.name,
            "found": in_words(card),
            "page": dg.MetadataValue.url(home.address_of(page)),
            "path": dg.MetadataValue.path(str(page)),
            **{_METADATA.sub("_", title.lower()): value for title, value in shown.items()},
        },
        data_version=dg.DataVersion(folder.name),
    )
    against = [
        row["t_value"]
        for row in card["scores"]
        if (row["block"], row["score"], row["horizon"], row["forecast"]) == ("validation", QLIKE, 21, "fixed HAR")
        and row["t_value"] is not None
    ]
    yield dg.AssetCheckResult(
        passed=not against or min(against) > -2,
        check_name="risk_forecasts_are_no_worse_than_fixed_har",
        asset_key="risk_scorecard",
        severity=dg.AssetCheckSeverity.WARN,
        description=f"t of the model's advantage: {min(against):+.1f}" if against else "not enough data",
    )


def checkpoint_of_run(context: dg.AssetExecutionContext, settings: Settings) -> Path:
    """The checkpoint that this run works on; the newest of the home where it has not made or used one yet.

    Raises:
        FinJEPAError: if there is none.
    """
    used = (made_in_run(context, key).get("checkpoint") for key in _WITH_CHECKPOINT)
    name = next((name for name in used if name is not None), None)
    return (checkpoint_here(settings, name) if name is not None else None) or current_checkpoint(settings)


def score_checkpoint(settings: Settings, checkpoint: Path, panel: Panel) -> tuple[Card, Path]:
    """Score the forecasts of a checkpoint; see `write_scorecard`."""
    found = scorecard(FinJEPA.from_pretrained(checkpoint), panel, checkpoint_splits(checkpoint, panel))
    return write_scorecard(settings.reports, checkpoint.name, found)


def _curves(checkpoint: Path) -> dg.MetadataValue:
    records = list(read_metrics(checkpoint.with_name(f"{checkpoint.name}.run")))
    return dg.MetadataValue.md(training_curves(records) if records else "no training log in this home")


ASSETS = [world_model, world_model_evaluation, risk_scorecard, model_sweep]
