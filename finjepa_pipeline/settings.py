"""FINJEPA_HOME and every environment variable of the product, in one typed object."""

import os
import tempfile
from pathlib import Path

import dagster as dg
from pydantic import BaseModel, ConfigDict

from finjepa_model.errors import FinJEPAError

DEFAULT_NIGHTLY_CRON = "0 18 * * 1-5"


class Settings(BaseModel):
    """Where everything that is made lives, and what the operator chose.

    Read from the environment by `from_env`: FINJEPA_HOME, FINJEPA_HUB_REPO_ID, FINJEPA_NIGHTLY_CRON (New York time) and
    FINJEPA_DUCKDB_MEMORY_LIMIT (a DuckDB size such as "2GB").
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path
    hub_repo_id: str | None = None
    nightly_cron: str = DEFAULT_NIGHTLY_CRON
    duckdb_memory_limit: str | None = None

    @classmethod
    def from_env(cls) -> "Settings":
        return cls(
            home=Path(os.environ.get("FINJEPA_HOME") or ".finjepa").expanduser().absolute(),
            hub_repo_id=os.environ.get("FINJEPA_HUB_REPO_ID") or None,
            nightly_cron=os.environ.get("FINJEPA_NIGHTLY_CRON") or DEFAULT_NIGHTLY_CRON,
            duckdb_memory_limit=os.environ.get("FINJEPA_DUCKDB_MEMORY_LIMIT") or None,
        )

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


class SettingsResource(dg.ConfigurableResource):
    """The settings as a Dagster resource; tests give a `home`, everybody else reads the environment."""

    home: str | None = None

    def get(self) -> Settings:
        settings = Settings.from_env()
        if self.home is not None:
            settings = settings.model_copy(update={"home": Path(self.home)})
        return settings.ensure()
