"""Assets of the training stage: `world_model`, `risk_scorecard` and `model_sweep`."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from finjepa_model import FinJEPA
from finjepa_model.config import preset
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import checkpoint_splits
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import read_json
from finjepa_model.training.risk_scorecard import QLIKE, scorecard
from finjepa_model.training.run_folder import read_metrics
from finjepa_pipeline import compute
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.features.assets import panel_of_run
from finjepa_pipeline.report.charts import image
from finjepa_pipeline.report.markdown import cell, numbers_table, table
from finjepa_pipeline.report.risk import Card, in_words, tables, write_scorecard
from finjepa_pipeline.report.training import curves, training_page
from finjepa_pipeline.runs import asset, made_in_run
from finjepa_pipeline.settings import Settings, SettingsResource
from finjepa_pipeline.training.checkpoints import (
    checkpoint_here,
    checkpoint_id,
    current_checkpoint,
    for_panel,
    make_current,
    run_folder_of,
    train_side_by_side,
    training_code_version,
)
from finjepa_pipeline.training.step import ModelChoice, train_in_step, without_champion
from finjepa_pipeline.warehouse import Warehouse

_METADATA = re.compile(r"[^a-z0-9]+")
_WITH_CHECKPOINT = ("challenger_audit", "planner_backtests", "world_model")
_SHOWN = ("loss", "prediction", "effective_rank_assets")  # curves
_SPEED = ("best_step", "samples_per_second", "gpu_memory_bytes")


class TrainConfig(ModelChoice):
    """What is trained."""

    processes: int | None = Field(
        default=None, description="Ranks; one for each GPU, or one on the CPU, when empty, e.g. 2"
    )


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


@asset(
    "model",
    "pytorch",
    deps=["feature_panel"],
    pool="gpu",
    code_version=training_code_version(),
    checks={
        "latents_have_not_collapsed": "None of the collapse monitors speaks of a collapse (docs/concepts/model.md)."
    },
    blocking=True,
)
def world_model(
    context: dg.AssetExecutionContext, config: TrainConfig, settings: SettingsResource, warehouse: Warehouse
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """The trained world model: a checkpoint folder, named by the hash of its config, panel and code, with the losses and collapse
    monitors of its validation block. It is trained in processes of its own; the same config on the same panel is not trained
    twice."""
    home = settings.get()
    panel = Panel.open(panel_of_run(context, home))
    asked = for_panel(preset(config.preset).override(config.overrides), panel)
    wanted = without_champion(home, warehouse, panel, asked)
    where = compute.ranks(home, config.processes)
    folder, reused = train_in_step(context, home, warehouse, panel, wanted, where)
    make_current(home, folder)
    metrics, page = read_json(folder / "metrics.json"), training_page(home.reports, folder.name)
    trained, diagnostics = metrics["training"], metrics["diagnostics"]
    monitors = {name: value for name, value in diagnostics.items() if name != "collapsed"}
    drawn = [image(svg, name) for svg, name in curves(list(read_metrics(run_folder_of(folder))), _SHOWN)]
    found = {"monitors": diagnostics, "validation": metrics["validation"], "readout": metrics.get("readout", {})}
    yield dg.MaterializeResult(
        metadata={
            "checkpoint": folder.name,
            "reused": reused,
            "path": dg.MetadataValue.path(str(folder)),
            "config": dg.MetadataValue.json(wanted.to_dict()),
            # no page of what came from a store
            **({"page": dg.MetadataValue.url(home.address_of(page))} if page.is_file() else {}),
            "curves": dg.MetadataValue.md("\n\n".join(drawn) or "no training log in this home"),
            **{name: dg.MetadataValue.md(numbers_table(values)) for name, values in found.items()},
            "validation_loss": metrics["validation"]["loss"],
            **{name: trained[name] for name in ("steps", "seconds", "device", *_SPEED) if name in trained},
            **monitors,
            "bytes": sum(file.stat().st_size for file in folder.iterdir()),
            "panel": panel.content_hash,
        },
        data_version=dg.DataVersion(folder.name),
    )
    yield dg.AssetCheckResult(
        passed=not diagnostics["collapsed"],
        check_name="latents_have_not_collapsed",
        description=f"collapse: {diagnostics['collapse']}",
        metadata=monitors,
    )


@asset(
    "model",
    "pytorch",
    deps=["world_model"],
    checks={
        "risk_forecasts_are_no_worse_than_fixed_har": "On the validation block, in QLIKE of volatility over 21 sessions, beyond "
        "chance (t below -2)."
    },
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
        value, step = float("inf"), 0
        if end := failed[name]:
            records = read_metrics(run_folder_of(home.checkpoints / checkpoint_id(one, panel)))
            for last in [record for record in records if record["kind"] == "validation"][-1:]:
                value, step = compute.metric_value(last, config.metric), last["step"]
        else:
            folder, _ = train_in_step(context, home, warehouse, panel, one, where)
            metrics, end = read_json(folder / "metrics.json"), folder.name
            value = compute.metric_value(metrics["validation"] | metrics["diagnostics"], config.metric)
            step, checkpoints[name] = metrics["training"]["steps"], folder.name
        rows.append((value, name, step, end))
    shown = [[name, f"{value:.4g}", str(step), end] for value, name, step, end in sorted(rows)]
    columns = ("training", f"validation {config.metric}", "steps", "checkpoint")
    return dg.MaterializeResult(
        metadata={
            "trainings": dg.MetadataValue.md(table(columns, [list(map(cell, row)) for row in shown])),
            "rows": dg.MetadataValue.json(shown),
            "checkpoints": dg.MetadataValue.json(checkpoints),
            "stopped_early": len(wanted) - len(checkpoints),
            "panel": panel.content_hash,
        }
    )


def variants(grid: Mapping[str, Sequence[Any]], seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Config overrides of every point of the grid with every seed, by a name that says what is special. Raises where there
    is nothing to train, or the seed is in the grid."""
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


def checkpoint_of_run(context: dg.AssetExecutionContext, settings: Settings) -> Path:
    """The checkpoint that this run works on; the newest of the home where it has not made or used one yet; raises where there is
    none."""
    used = (made_in_run(context, key).get("checkpoint") for key in _WITH_CHECKPOINT)
    name = next((name for name in used if name is not None), None)
    return (checkpoint_here(settings, name) if name is not None else None) or current_checkpoint(settings)


def score_checkpoint(settings: Settings, checkpoint: Path, panel: Panel) -> tuple[Card, Path]:
    """Score the forecasts of a checkpoint; see `write_scorecard`."""
    found = scorecard(FinJEPA.from_pretrained(checkpoint), panel, checkpoint_splits(checkpoint, panel))
    return write_scorecard(settings.reports, checkpoint.name, found)


ASSETS = [world_model, risk_scorecard, model_sweep]
