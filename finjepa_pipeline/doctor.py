"""What is installed, which device, which data, which token; what is missing and how to get it."""

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
from finjepa_pipeline.training.lineage import installed
from finjepa_pipeline.warehouse import Warehouse

_PACKAGES = ("torch", "dagster", "duckdb", "polars", "great-expectations", "skfolio", "arch", "huggingface-hub")


@dataclass(frozen=True)
class DoctorFinding:
    good: bool
    what: str
    found: str
    way_out: str = ""


def examine(settings: Settings) -> list[DoctorFinding]:
    """Look at everything that a run needs; nothing is changed but that the home is made."""
    parts = (_packages(), _device(), _home(settings), _hub(settings), _compute(settings), _nightly_runs(settings))
    return [finding for part in parts for finding in part]


def _packages() -> Iterator[DoctorFinding]:
    yield DoctorFinding(True, "python", platform.python_version())
    for name in _PACKAGES:
        version = installed(name)
        yield DoctorFinding(
            version is not None, name, version or "missing", "" if version else "pip install 'finjepa[pipeline]'"
        )


def _device() -> Iterator[DoctorFinding]:
    import torch  # here: the commands that need none of it import this module too

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield DoctorFinding(True, "device", f"cuda: {names}")
    else:
        hint = "presets base and large want a CUDA build of torch"
        yield DoctorFinding(True, "device", f"cpu, {torch.get_num_threads()} threads", hint)


def _home(settings: Settings) -> Iterator[DoctorFinding]:
    try:
        settings.ensure()
        with Warehouse.from_settings(settings).connect() as connection:
            revision = current_revision(connection)
    except FinJEPAError as error:
        yield DoctorFinding(False, "home", str(settings.home), str(error))
        return
    yield DoctorFinding(True, "home", str(settings.home))
    if revision is None:
        yield DoctorFinding(False, "prices", "none yet", "finjepa ingest, or finjepa demo")
    else:
        yield DoctorFinding(True, "prices", f"{revision.rows:,} rows of {revision.feed}, to {revision.last_date}")
    try:
        yield DoctorFinding(True, "checkpoint", current_checkpoint(settings).name)
    except FinJEPAError:
        yield DoctorFinding(False, "checkpoint", "none yet", "finjepa train, or finjepa demo")


def _hub(settings: Settings) -> Iterator[DoctorFinding]:
    where = settings.hub_repo_id or "no repository (set FINJEPA_HUB_REPO_ID to publish)"
    if get_token():
        yield DoctorFinding(True, "hub", f"a token; {where}")
    else:
        yield DoctorFinding(settings.hub_repo_id is None, "hub", f"no token; {where}", "hf auth login")


def _compute(settings: Settings) -> Iterator[DoctorFinding]:
    version = installed("ray")
    ray = f"ray {version} is installed" if version else "ray is not installed (pip install 'finjepa[ray]')"
    address = settings.ray_address
    if address is None:
        yield DoctorFinding(
            True, "compute", f"local; {ray}", "FINJEPA_COMPUTE=HOST:6379 for a Ray cluster (docs/how-to/scale.md)"
        )
    else:
        try:
            with connected(address):
                yield DoctorFinding(True, "compute", f"{address}: {resources()}; {ray}")
        except FinJEPAError as error:
            yield DoctorFinding(False, "compute", address, str(error))
    if settings.artifacts is None:
        yield DoctorFinding(
            True, "artifacts", "this home only", "FINJEPA_ARTIFACTS=s3://bucket/prefix or a shared folder"
        )
        return
    try:
        Artifacts(settings.artifacts).has("checkpoints", "doctor")
        yield DoctorFinding(True, "artifacts", settings.artifacts)
    except FinJEPAError as error:
        yield DoctorFinding(False, "artifacts", settings.artifacts, str(error))


def _nightly_runs(settings: Settings) -> Iterator[DoctorFinding]:
    """What the nightly schedule needs: the instance, its own config, and where an alert goes."""
    instance = Path(os.environ.get("DAGSTER_HOME") or settings.dagster) / "dagster.yaml"
    if instance.is_file():
        launcher = (yaml.safe_load(instance.read_text(encoding="utf-8")) or {}).get("run_launcher", {}).get("class")
        watched = launcher == "WatchedRunLauncher"
        hint = "take dagster.yaml of this version: the one there does not see when a run's process is gone"
        yield DoctorFinding(watched, "instance", str(instance), "" if watched else hint)
    try:
        own = nightly_config(settings, defs.resolve_job_def(nightly.name))
        shown = "nightly.yaml" if own else "the defaults of every asset"
        yield DoctorFinding(True, "nightly runs", f"{shown}; {settings.nightly_cron} in New York")
    except FinJEPAError as error:
        yield DoctorFinding(False, "nightly runs", "they do not start", str(error))
    alerts = [name for name, to in (("webhook", settings.alert_webhook), ("command", settings.alert_command)) if to]
    hint = "" if alerts else "FINJEPA_ALERT_WEBHOOK or FINJEPA_ALERT_COMMAND (docs/how-to/alerts.md)"
    yield DoctorFinding(True, "alerts", " and ".join(alerts) or "nobody is alerted when a nightly run fails", hint)
