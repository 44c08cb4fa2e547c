"""What is installed, which device, which data, which token; what is missing and how to get it."""

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import yaml

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.settings import Settings

_PACKAGES = ("torch", "dagster", "duckdb", "polars", "great-expectations", "skfolio", "arch", "huggingface-hub")


@dataclass(frozen=True)
class Finding:
    good: bool
    what: str
    found: str
    way_out: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Look at everything that a run needs; nothing is changed but that the home is made."""
    return [
        Finding(True, "python", platform.python_version()),
        *_packages(),
        _device(),
        *_home(settings),
        _token(settings),
        _compute(settings),
        _artifacts(settings),
        *_nights(settings),
    ]


def _packages() -> list[Finding]:
    findings = []
    for name in _PACKAGES:
        try:
            findings.append(Finding(True, name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(
                Finding(
                    False, name, "missing", "pip install 'finjepa[pipeline]', or `make demo`, which installs everything"
                )
            )
    return findings


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding(True, "device", f"cuda: {names}")
    return Finding(
        True, "device", f"cpu, {torch.get_num_threads()} threads", "presets base and large want a CUDA build of torch"
    )


def _home(settings: Settings) -> list[Finding]:
    from finjepa_pipeline.prices import current_revision
    from finjepa_pipeline.training.run import current_checkpoint
    from finjepa_pipeline.warehouse import Warehouse

    try:
        settings.ensure()
        findings = [Finding(True, "home", str(settings.home))]
        with Warehouse.from_settings(settings).connect() as connection:
            revision = current_revision(connection)
    except FinJEPAError as error:
        return [Finding(False, "home", str(settings.home), str(error))]
    if revision is None:
        findings.append(Finding(False, "prices", "none yet", "finjepa ingest, or finjepa demo"))
    else:
        findings.append(Finding(True, "prices", f"{revision.rows:,} rows of {revision.feed}, to {revision.last_date}"))
    try:
        findings.append(Finding(True, "checkpoint", current_checkpoint(settings).name))
    except FinJEPAError:
        findings.append(Finding(False, "checkpoint", "none yet", "finjepa train, or finjepa demo"))
    return findings


def _token(settings: Settings) -> Finding:
    from huggingface_hub import get_token

    where = settings.hub_repo_id or "no repository (set FINJEPA_HUB_REPO_ID to publish)"
    if get_token():
        return Finding(True, "hub", f"a token; {where}")
    return Finding(settings.hub_repo_id is None, "hub", f"no token; {where}", "hf auth login")


def _nights(settings: Settings) -> list[Finding]:
    """What the nightly schedule stands on: the instance, its own config, and who is told when it fails."""
    from finjepa_pipeline.automation import night_config

    instance = Path(os.environ.get("DAGSTER_HOME") or settings.dagster) / "dagster.yaml"
    findings = []
    if instance.is_file():
        launcher = (yaml.safe_load(instance.read_text(encoding="utf-8")) or {}).get("run_launcher", {}).get("class")
        watched = launcher == "WatchedRunLauncher"
        mend = (
            ""
            if watched
            else "take dagster.yaml of this version: the one there does not see when a run's process is gone"
        )
        findings.append(Finding(watched, "instance", str(instance), mend))
    try:
        own = "nightly.yaml" if night_config(settings) else "the defaults of every asset"
        findings.append(Finding(True, "nights", f"{own}; {settings.nightly_cron} in New York"))
    except FinJEPAError as error:
        findings.append(Finding(False, "nights", "they do not start", str(error)))
    told = [name for name, where in (("webhook", settings.alert_webhook), ("command", settings.alert_command)) if where]
    hint = "" if told else "FINJEPA_ALERT_WEBHOOK or FINJEPA_ALERT_COMMAND (docs/operate.md)"
    return [*findings, Finding(True, "alerts", " and ".join(told) or "nobody is told when a night fails", hint)]


def _compute(settings: Settings) -> Finding:
    try:
        ray = f"ray {importlib.metadata.version('ray')} is installed"
    except importlib.metadata.PackageNotFoundError:
        ray = "ray is not installed (pip install 'finjepa[ray]')"
    address = settings.ray_address
    if address is None:
        return Finding(True, "compute", f"local; {ray}", "FINJEPA_COMPUTE=HOST:6379 for a Ray cluster (docs/scale.md)")
    from finjepa_pipeline.scale.cluster import connected, resources

    try:
        with connected(address):
            return Finding(True, "compute", f"{address}: {resources()}; {ray}")
    except FinJEPAError as error:
        return Finding(False, "compute", address, str(error))


def _artifacts(settings: Settings) -> Finding:
    from finjepa_pipeline.artifacts import Artifacts

    if settings.artifacts is None:
        return Finding(True, "artifacts", "this home only", "FINJEPA_ARTIFACTS=s3://bucket/prefix or a shared folder")
    try:
        Artifacts(settings.artifacts).has("checkpoints", "doctor")
    except FinJEPAError as error:
        return Finding(False, "artifacts", settings.artifacts, str(error))
    return Finding(True, "artifacts", settings.artifacts)
