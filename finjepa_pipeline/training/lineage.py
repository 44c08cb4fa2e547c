"""lineage.json: everything that a checkpoint needs to be made again, written when it is made."""

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import dagster as dg

from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import learned_blocks, split_dates
from finjepa_pipeline.prices.history import derived_options, find_revision
from finjepa_pipeline.training.checkpoints import training_code_version
from finjepa_pipeline.warehouse import Warehouse

FORMAT = 1
_LIBRARIES = (
    "torch", "numpy", "scipy", "safetensors", "huggingface_hub", "datasets", "dagster", "duckdb", "polars", "pyarrow", "pandas",
    "great-expectations", "skfolio", "arch", "exchange-calendars", "pydantic",
)  # fmt: skip
# What is kept of a revision of the prices.
_OF_REVISION = ("number", "feed", "source", "version", "rows", "quarantined_rows", "columns", "accepted")


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
