"""What is installed, which device, which data, which token; what is missing and how to get it."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import get_token

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.automation import nightly, nightly_config
from finjepa_pipeline.compute import connected, resources
from finjepa_pipeline.definitions import defs
from finjepa_pipeline.prices import current_revision
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.store import Artifacts
from finjepa_pipeline.training.checkpoints import current_checkpoint
from finjepa_pipeline.warehouse import Warehouse

_PACKAGES = ("torch", "dagster", "duckdb", "polars", "great-expectations", "skfolio", "arch", "huggingface-hub")


@dataclass(frozen=True)
class Finding:
    good: bool
    what: str
    found: str
    way_out: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Look at everything that a run needs; nothing is changed but that the home is made."""
    parts = (_packages(), _device(), _home(settings), _hub(settings), _compute(settings), _nightly_runs(settings))
    return [finding for part in parts for finding in part]


def _packages() -> Iterator[Finding]:
    yield Finding(True, "python", platform.python_version())
    for name in _PACKAGES:
        version = _version(name)
        yield Finding(
            version is not None, name, version or "missing", "" if version else "pip install 'finjepa[pipeline]'"
        )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device() -> Iterator[Finding]:
    import torch  # here: the commands that need none of it import this module too

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Finding(True, "device", f"cuda: {names}")
    else:
        hint = "presets base and large want a CUDA build of torch"
        yield Finding(True, "device", f"cpu, {torch.get_num_threads()} threads", hint)


def _home(settings: Settings) -> Iterator[Finding]:
    try:
        settings.ensure()
        with Warehouse.from_settings(settings).connect() as connection:
            revision = current_revision(connection)
    except FinJEPAError as error:
        yield Finding(False, "home", str(settings.home), str(error))
        return
    yield Finding(True, "home", str(settings.home))
    if revision is None:
        yield Finding(False, "prices", "none yet", "finjepa ingest, or finjepa demo")
    else:
        yield Finding(True, "prices", f"{revision.rows:,} rows of {revision.feed}, to {revision.last_date}")
    try:
        yield Finding(True, "checkpoint", current_checkpoint(settings).name)
    except FinJEPAError:
        yield Finding(False, "checkpoint", "none yet", "finjepa train, or finjepa demo")


def _hub(settings: Settings) -> Iterator[Finding]:
    where = settings.hub_repo_id or "no repository (set FINJEPA_HUB_REPO_ID to publish)"
    if get_token():
        yield Finding(True, "hub", f"a token; {where}")
    else:
        yield Finding(settings.hub_repo_id is None, "hub", f"no token; {where}", "hf auth login")


def _compute(settings: Settings) -> Iterator[Finding]:
    version = _version("ray")
    ray = f"ray {version} is installed" if version else "ray is not installed (pip install 'finjepa[ray]')"
    address = settings.ray_address
    if address is None:
        yield Finding(
            True, "compute", f"local; {ray}", "FINJEPA_COMPUTE=HOST:6379 for a Ray cluster (docs/how-to/scale.md)"
        )
    else:
        try:
            with connected(address):
                yield Finding(True, "compute", f"{address}: {resources()}; {ray}")
        except FinJEPAError as error:
            yield Finding(False, "compute", address, str(error))
    if settings.artifacts is None:
        yield Finding(True, "artifacts", "this home only", "FINJEPA_ARTIFACTS=s3://bucket/prefix or a shared folder")
        return
    try:
        Artifacts(settings.artifacts).has("checkpoints", "doctor")
        yield Finding(True, "artifacts", settings.artifacts)
    except FinJEPAError as error:
        yield Finding(False, "artifacts", settings.artifacts, str(error))


def _nightly_runs(settings: Settings) -> Iterator[Finding]:
    """What the nightly schedule needs: the instance, its own config, and where an alert goes."""
    instance = Path(os.environ.get("DAGSTER_HOME") or settings.dagster) / "dagster.yaml"
    if instance.is_file():
        launcher = (yaml.safe_load(instance.read_text(encoding="utf-8")) or {}).get("run_launcher", {}).get("class")
        watched = launcher == "WatchedRunLauncher"
        hint = "take dagster.yaml of this version: the one there does not see when a run's process is gone"
        yield Finding(watched, "instance", str(instance), "" if watched else hint)
    try:
        own = nightly_config(settings, defs.resolve_job_def(nightly.name))
        shown = "nightly.yaml" if own else "the defaults of every asset"
        yield Finding(True, "nightly runs", f"{shown}; {settings.nightly_cron} in New York")
    except FinJEPAError as error:
        yield Finding(False, "nightly runs", "they do not start", str(error))
    alerts = [name for name, to in (("webhook", settings.alert_webhook), ("command", settings.alert_command)) if to]
    hint = "" if alerts else "FINJEPA_ALERT_WEBHOOK or FINJEPA_ALERT_COMMAND (docs/how-to/alerts.md)"
    yield Finding(True, "alerts", " and ".join(alerts) or "nobody is alerted when a nightly run fails", hint)
