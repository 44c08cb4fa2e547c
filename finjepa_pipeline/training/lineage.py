"""lineage.json: everything that a checkpoint needs to be made again, written when it is made."""

import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from finjepa_pipeline.prices.history import derived_options, find_revision, options_of
from finjepa_pipeline.run_inputs import event_of_run

if TYPE_CHECKING:
    import duckdb

FORMAT = 1
_LIBRARIES = (
    "torch", "numpy", "scipy", "safetensors", "huggingface_hub", "datasets", "dagster", "duckdb", "polars", "pyarrow", "pandas",
    "great-expectations", "skfolio", "arch", "exchange-calendars", "pydantic",
)  # fmt: skip


def lineage(
    *,
    config: Mapping[str, Any],
    seed: int,
    data: Mapping[str, Any],
    panel_hash: str,
    device: str,
    blocks: Mapping[str, Any],
    run_id: str | None = None,
    upstream: Mapping[str, Any] | None = None,
    build: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What made a checkpoint, ready for JSON.

    Args:
        config: the whole config, as in config.json.
        data: where the prices came from: `data_version`, and as far as known `feed`, `source`, `version` (Hub commit or hash
            of the files), `rows`, `quarantined_rows`, `first_date`, `last_date` (ISO dates), `assets`, `columns`.
        panel_hash: content hash of the feature panel.
        blocks: first and last session (ISO dates) of `train`, `validation` and `test`: a checkpoint is judged by these dates,
            whatever panel it meets later.
        device: what it was trained on, as in "cpu" or "cuda: NVIDIA H200".
        run_id: of the Dagster run.
        upstream: for each upstream asset key its last materialisation: at least `run_id`, `timestamp`, `data_version`.
        build: what makes the inputs again: as `build_inputs`, with the panel's `channels`, the hash of the `training_code`, and
            the `processes` and `threads` of the training.
    """
    return {
        "format": FORMAT,
        "code": code_version(),
        "config": dict(config),
        "seed": seed,
        "data": dict(data),
        "panel_hash": panel_hash,
        "blocks": dict(blocks),
        "build": dict(build or {}),
        "device": device,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": library_versions(),
        "dagster": {"run_id": run_id, "upstream": dict(upstream or {})},
    }


def build_inputs(con: "duckdb.DuckDBPyConnection", manifest: Mapping[str, Any]) -> dict[str, Any]:
    """How the prices and the universe of a panel are made again: the options of the source, and of the universe."""
    source = options_of(con, manifest["feed"]) or "{}"
    universe = manifest.get("universe_options") or derived_options(con)  # of panels that were made before they had it
    known = find_revision(con, manifest["feed"], manifest["data_version"])
    # what a person let pass, the next ingestion of the same would refuse
    accept = {"accept": list(known.accepted)} if known and known.accepted else {}
    return {"source": json.loads(source) | accept, "universe": json.loads(universe)}


def code_version() -> dict[str, Any]:
    """The package version and, in a checkout, the git revision and whether files were changed since."""
    code: dict[str, Any] = {"finjepa": _version("finjepa"), "revision": None, "modified": None}
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        revision = _git(root, "rev-parse", "HEAD")
        if revision:
            code |= {"revision": revision, "modified": bool(_git(root, "status", "--porcelain"))}
    return code


def library_versions() -> dict[str, str | None]:
    return {name: _version(name) for name in _LIBRARIES}


def _version(distribution: str) -> str | None:
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


def upstream_materializations(context: dg.AssetExecutionContext, asset_keys: Iterable[str]) -> dict[str, Any]:
    """The materialisation of each asset in this run, or else its last one, for `lineage(upstream=...)`; None for an asset that
    has none."""
    return {key: _materialization(context, key) for key in asset_keys}


def _materialization(context: dg.AssetExecutionContext, key: str) -> dict[str, Any] | None:
    event = event_of_run(context, key) or context.instance.get_latest_materialization_event(dg.AssetKey(key))
    if event is None or event.asset_materialization is None:
        return None
    tags = event.asset_materialization.tags or {}
    made_at = datetime.fromtimestamp(event.timestamp, UTC).isoformat(timespec="seconds")
    return {"run_id": event.run_id, "timestamp": made_at, "data_version": tags.get("dagster/data_version")}
