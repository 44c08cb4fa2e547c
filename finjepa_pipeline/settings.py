"""FINJEPA_HOME and every environment variable of the product, in one typed object."""

import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import dagster as dg
from pydantic import BaseModel, ConfigDict

from finjepa_model.errors import FinJEPAError

DEFAULT_NIGHTLY_CRON = "0 18 * * 1-5"
DEFAULT_MEMORY_LIMIT = "3GB"  # a whole market fits, and what does not goes to disk
DEFAULT_CHAMPION_MAX_AGE_DAYS = 45
DEFAULT_WAIT_MINUTES = 30  # a step of another command rarely takes longer; a training does
DEFAULT_UI_URL = "http://localhost:3000"  # where `make ui` serves
LOCAL = "local"
_RAY_ADDRESS = re.compile(r"auto|(?!local:)[^\s/:]+:\d+")
_LOCAL = re.compile(r"local(?::([1-9]\d*))?")


class Settings(BaseModel):
    """Where everything that is made lives, and what the operator chose.

    Read from the environment by `from_env`: FINJEPA_HOME, FINJEPA_HUB_REPO_ID, FINJEPA_NIGHTLY_CRON (New York time),
    FINJEPA_DUCKDB_MEMORY_LIMIT (what a process may take for SQL, such as "2GB"), FINJEPA_ALERT_WEBHOOK (a URL that JSON is
    posted to), FINJEPA_ALERT_COMMAND (a command that reads the same JSON), FINJEPA_CHAMPION_MAX_AGE_DAYS (days until a
    champion that nothing has replaced is called stale), FINJEPA_UI_URL (where the Dagster UI is, for links of pages),
    FINJEPA_WAIT_MINUTES (how long a command waits for another one that uses the same home),
    FINJEPA_COMPUTE (where heavy work runs: `local`, `local:N` for N processes, or the address of a Ray cluster) and
    FINJEPA_ARTIFACTS (where every machine finds what was made: a folder, or s3://bucket/prefix).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path
    hub_repo_id: str | None = None
    nightly_cron: str = DEFAULT_NIGHTLY_CRON
    duckdb_memory_limit: str | None = DEFAULT_MEMORY_LIMIT
    alert_webhook: str | None = None
    alert_command: str | None = None
    champion_max_age_days: int = DEFAULT_CHAMPION_MAX_AGE_DAYS
    wait_minutes: int = DEFAULT_WAIT_MINUTES
    ui_url: str = DEFAULT_UI_URL
    compute: str = LOCAL
    artifacts: str | None = None

    @classmethod
    def from_env(cls) -> "Settings":
        return cls(
            home=Path(os.environ.get("FINJEPA_HOME") or ".finjepa").expanduser().absolute(),
            hub_repo_id=os.environ.get("FINJEPA_HUB_REPO_ID") or None,
            nightly_cron=os.environ.get("FINJEPA_NIGHTLY_CRON") or DEFAULT_NIGHTLY_CRON,
            duckdb_memory_limit=os.environ.get("FINJEPA_DUCKDB_MEMORY_LIMIT") or DEFAULT_MEMORY_LIMIT,
            alert_webhook=os.environ.get("FINJEPA_ALERT_WEBHOOK") or None,
            alert_command=os.environ.get("FINJEPA_ALERT_COMMAND") or None,
            champion_max_age_days=_number("FINJEPA_CHAMPION_MAX_AGE_DAYS", DEFAULT_CHAMPION_MAX_AGE_DAYS, "days"),
            wait_minutes=_number("FINJEPA_WAIT_MINUTES", DEFAULT_WAIT_MINUTES, "minutes"),
            ui_url=(os.environ.get("FINJEPA_UI_URL") or DEFAULT_UI_URL).rstrip("/"),
            compute=_compute(),
            artifacts=_artifacts(),
        )

    @property
    def ray_address(self) -> str | None:
        """The cluster that heavy work runs on; None where it runs here."""
        return None if _LOCAL.fullmatch(self.compute) else self.compute

    @property
    def processes(self) -> int:
        """How many processes work at once on this machine: those of `local:N`, or one a core."""
        found = _LOCAL.fullmatch(self.compute)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return int(found[1]) if found and found[1] else cores

    @property
    def nightly_config(self) -> Path:
        """What a night trains and publishes, as run config; the defaults where there is no such file."""
        return self.home / "nightly.yaml"

    @property
    def warehouse(self) -> Path:
        return self.home / "warehouse.duckdb"

    @property
    def snapshots(self) -> Path:
        return self.home / "snapshots"

    @property
    def panels(self) -> Path:
        return self.home / "panels"

    @property
    def checkpoints(self) -> Path:
        return self.home / "checkpoints"

    @property
    def reports(self) -> Path:
        return self.home / "reports"

    @property
    def releases(self) -> Path:
        return self.home / "releases"

    @property
    def dagster(self) -> Path:
        return self.home / "dagster"

    def ensure(self) -> "Settings":
        """Make the folders.

        Raises:
            FinJEPAError: if FINJEPA_HOME cannot be made or written to.
        """
        for sign in "?\\":  # ends the path in the URL by which Dagster opens its files; is a slash for DuckDB
            if sign in str(self.home):
                raise FinJEPAError(
                    f"FINJEPA_HOME={self.home} has a {sign} in its path; set FINJEPA_HOME to a folder without one"
                )
        try:
            for folder in (self.snapshots, self.panels, self.checkpoints, self.reports, self.releases, self.dagster):
                folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.home):
                pass
        except OSError as error:
            raise FinJEPAError(
                f"FINJEPA_HOME={self.home} cannot be written ({error.strerror}); "
                "set FINJEPA_HOME to a folder that you own"
            ) from error
        return self


def sweep(settings: Settings, older_than_s: float = 86_400.0) -> list[Path]:
    """Remove what processes that were killed have left half-written: files and folders named `.tmp-*`, a day old at least, so
    that none of a living process is among them.

    Returns:
        What was removed.
    """
    left = [*settings.home.glob(".tmp-*"), *settings.home.glob("*/.tmp-*"), *settings.home.glob("*/*/.tmp-*")]
    old = [path for path in left if time.time() - path.lstat().st_mtime > older_than_s]
    for path in old:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return old


def _number(name: str, default: int, unit: str) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or int(text) == 0:
        raise FinJEPAError(f"{name}={text!r} is not a number of {unit}; write it as {default}")
    return int(text)


def _compute() -> str:
    text = os.environ.get("FINJEPA_COMPUTE") or LOCAL
    if text.startswith("ray://"):
        raise FinJEPAError(
            f"FINJEPA_COMPUTE={text}: Ray's client is not supported; join this machine to the cluster "
            "(`ray start --address=HOST:6379 --num-cpus=0`) and set FINJEPA_COMPUTE=HOST:6379"
        )
    if not _LOCAL.fullmatch(text) and not _RAY_ADDRESS.fullmatch(text):
        raise FinJEPAError(
            f"FINJEPA_COMPUTE={text!r} is neither `local`, `local:N` (N processes) nor the address of a Ray cluster; "
            "write HOST:6379 or auto"
        )
    return text


def _artifacts() -> str | None:
    text = os.environ.get("FINJEPA_ARTIFACTS") or None
    return text if text is None or "://" in text else str(Path(text).expanduser().absolute())


class SettingsResource(dg.ConfigurableResource):
    """The settings as a Dagster resource; tests give a `home`, everybody else reads the environment."""

    home: str | None = None

    def get(self) -> Settings:
        settings = Settings.from_env()
        if self.home is not None:
            settings = settings.model_copy(update={"home": Path(self.home)})
        return settings.ensure()
