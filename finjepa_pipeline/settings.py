"""Every environment variable of the product, in one typed class, and where everything that is made lies."""

import os
import re
import tempfile
from pathlib import Path
from urllib.parse import quote

import dagster as dg
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from finjepa_model.errors import FinJEPAError

DEFAULT_UI_URL = "http://localhost:3000"  # where `make ui` serves
LOCAL = "local"
_RAY_ADDRESS = re.compile(r"auto|(?!local:)[^\s/:]+:\d+")
_LOCAL = re.compile(r"local(?::([1-9]\d*))?")


class Settings(BaseModel):
    """What the operator chose: the variable of a field is FINJEPA_ and its name, as in FINJEPA_HOME; empty means the default."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    home: Path = Field(default=Path(".finjepa"), description="folder of everything that is made")
    hub_repo_id: str | None = Field(default=None, description="repository on the Hub of the releases, owner/name")
    planner: str = Field(
        default="qp", description="who acts, unless another planner has evidence: qp, mppi | UTILITY, ..."
    )
    nightly_cron: str = Field(default="0 18 * * 1-5", description="when a nightly run starts, New York time")
    duckdb_memory_limit: str | None = Field(
        default="3GB",  # a whole market fits, and what does not goes to disk
        description="memory that a process may take for SQL",
    )
    alert_webhook: str | None = Field(default=None, description="URL that alerts are posted to, as JSON")
    alert_command: str | None = Field(default=None, description="command that reads the same JSON")
    wait_minutes: int = Field(
        default=30,  # a step of another command rarely takes longer; a training does
        gt=0,
        description="how long a command waits for another one that uses the same home, minutes",
    )
    ui_url: str | None = Field(
        default=None,
        description="address of the Dagster UI, for links in alerts and pages, e.g. https://finjepa.example",
    )
    compute: str = Field(
        default=LOCAL,
        description="where heavy work runs: local, local:N for N processes, or the address of a Ray cluster",
    )
    artifacts: str | None = Field(
        default=None, description="where every machine finds what was made: a folder, or s3://bucket/prefix"
    )

    @classmethod
    def from_env(cls) -> "Settings":
        """Raises where a variable has no such value."""
        variables = {name: os.environ.get(f"FINJEPA_{name.upper()}") for name in cls.model_fields}
        try:
            return cls.model_validate({name: value for name, value in variables.items() if value})
        except ValidationError as error:
            first = error.errors()[0]
            name, reason = str(first["loc"][0]), str(first.get("ctx", {}).get("error") or f"is refused: {first['msg']}")
            default = cls.model_fields[name].default
            raise FinJEPAError(f"FINJEPA_{name.upper()}={first['input']!r} {reason} (default {default})") from error

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @field_validator("artifacts")
    @classmethod
    def _absolute_folder(cls, artifacts: str | None) -> str | None:
        return artifacts if artifacts is None or "://" in artifacts else str(Path(artifacts).expanduser().absolute())

    @field_validator("ui_url")
    @classmethod
    def _without_slash(cls, url: str | None) -> str | None:
        return url and url.rstrip("/")

    @field_validator("compute")
    @classmethod
    def _cluster(cls, compute: str) -> str:
        if not _LOCAL.fullmatch(compute) and not _RAY_ADDRESS.fullmatch(compute):
            raise ValueError(
                "is neither `local`, `local:N` (N processes) nor HOST:6379 of a Ray cluster that this machine has joined "
                "(`ray start --address=HOST:6379 --num-cpus=0`)"
            )
        return compute

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

    def address_of(self, page: Path) -> str:
        """Where the UI serves a file of this home, within the UI."""
        return f"/pages/{quote(page.relative_to(self.home).as_posix())}"

    def ensure(self) -> "Settings":
        """Make the folders; raises where FINJEPA_HOME cannot be made or written to."""
        for sign in "?\\":  # ends the path in the URL by which Dagster opens its files; is a slash for DuckDB
            if sign in str(self.home):
                raise FinJEPAError(
                    f"FINJEPA_HOME={self.home} has a {sign} in its path; set FINJEPA_HOME to a folder without one"
                )
        try:
            for folder in (self.panels, self.checkpoints, self.reports, self.releases, self.dagster):
                folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.home):
                pass
        except OSError as error:
            raise FinJEPAError(
                f"FINJEPA_HOME={self.home} cannot be written ({error.strerror}); "
                "set FINJEPA_HOME to a folder that you own"
            ) from error
        return self


class SettingsResource(dg.ConfigurableResource):
    """The settings as a Dagster resource; tests give a `home`, everybody else reads the environment."""

    home: str | None = None

    def get(self) -> Settings:
        settings = Settings.from_env()
        return (settings.model_copy(update={"home": Path(self.home)}) if self.home else settings).ensure()
