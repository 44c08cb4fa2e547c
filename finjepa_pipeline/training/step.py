"""A training inside a step of Dagster: its page while it runs, and its `lineage.json`, by which it can be made again."""

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from finjepa_model.checkpoint import read_config
from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import learned_blocks, split_dates
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import read_json
from finjepa_pipeline.prices.history import derived_options, find_revision
from finjepa_pipeline.report.page import duration
from finjepa_pipeline.report.training import TrainingPage, training_page
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import (
    checkpoint_here,
    checkpoint_id,
    is_of_kind,
    run_folder_of,
    train_checkpoint,
    training_code_version,
)
from finjepa_pipeline.warehouse import Warehouse

FORMAT = 1
_LIBRARIES = (
    "torch", "numpy", "scipy", "safetensors", "huggingface_hub", "datasets", "dagster", "duckdb", "polars", "pyarrow", "pandas",
    "great-expectations", "skfolio", "arch", "exchange-calendars", "pydantic",
)  # fmt: skip
# What is kept of a revision of the prices.
_OF_REVISION = ("number", "feed", "source", "version", "rows", "quarantined_rows", "columns", "accepted")


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


# lineage.json


def lineage_of_run(
    context: dg.AssetExecutionContext,
    warehouse: Warehouse,
    panel: Panel,
    config: FinJEPAConfig,
    where: Mapping[str, Any],
    fold: str | None = None,
) -> dict[str, Any]:
    """What makes a checkpoint again, as the run that trains it knows it, ready for JSON; `where` and `fold` as for
    `train_in_step`.

    Returns:
        `data`: where the prices came from, dates in ISO format. `blocks`: first and last session of `train`, `validation` and
        `test`; a checkpoint is judged by these dates, whatever panel it meets later. `build`: what makes its inputs again.
        `dagster`: the run.
    """
    data = {"data_version": panel.manifest["data_version"], "assets": len(panel.assets)}
    with warehouse.connect() as connection:
        revision = find_revision(connection, panel.manifest["feed"], data["data_version"])
        universe = panel.manifest.get("universe_options") or derived_options(connection)
    source = json.loads(revision.options_json) if revision else {}
    inputs: dict[str, Any] = {"source": source, "universe": json.loads(universe)}
    if revision is not None:
        data |= {name: getattr(revision, name) for name in _OF_REVISION}
        data |= {name: str(getattr(revision, name)) for name in ("first_date", "last_date")}
        # what a person let pass, the next ingestion of the same would refuse
        inputs["source"] |= {"accept": list(revision.accepted)} if revision.accepted else {}
    if config.training.panels:
        beside = [(one, stop) for one, (_, stop) in learned_blocks(panel, config)[1:]]
        data["panels"] = [
            {name: one.manifest[name] for name in ("content_hash", "feed", "data_version")}
            | {"assets": len(one.assets), "first_date": str(one.dates[0]), "last_date": str(one.dates[stop - 1])}
            for one, stop in beside
        ]
    if fold is not None:
        data["fold"] = fold
    return made_with() | {
        "format": FORMAT,
        "config": config.to_dict(),
        "seed": config.training.seed,
        "data": data,
        "panel_hash": panel.content_hash,
        "blocks": split_dates(len(panel.dates), config).dates(panel.dates),
        "build": inputs
        | {"channels": list(panel.channels), "training_code": training_code_version()}
        | {"processes": where["processes"], "threads": where["threads"]},
        "device": where["device"],
        "dagster": {"run_id": context.run.run_id},
    }


def made_with() -> dict[str, Any]:
    """Code, interpreter and libraries of this process."""
    return {
        "code": _code_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: installed(name) for name in _LIBRARIES},
    }


def _code_version() -> dict[str, Any]:
    """The package version and, in a checkout, the git revision and whether files were changed since."""
    root = Path(__file__).resolve().parents[2]
    revision = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    modified = bool(_git(root, "status", "--porcelain")) if revision else None
    return {"finjepa": installed("finjepa"), "revision": revision, "modified": modified}


def installed(distribution: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    """The answer of git, None where it cannot say (no git, no commit yet, a repository of somebody else)."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
