"""A home for prices, and files to ingest into it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from finjepa_pipeline.prices.derive import UniverseConfig, derive
from finjepa_pipeline.prices.ingest import IngestReport, ingest
from finjepa_pipeline.prices.sources import PriceSourceConfig
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse

UNIVERSE = UniverseConfig(min_history=10, window=5, min_dollar_volume=1)  # of a market that is small and young


class Home:
    """A FINJEPA_HOME with a folder of price files beside it."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(home=folder / "home").ensure()
        self.warehouse = Warehouse.from_settings(self.settings)
        self.files = folder / "files"
        self.files.mkdir(parents=True)

    def ingest(self, path: Path | None = None, **config: Any) -> IngestReport:
        return ingest(
            self.warehouse,
            self.settings,
            PriceSourceConfig(data_source="files", path=str(path or self.files), **config),
        )

    def derived(self, rows: pl.DataFrame, universe: UniverseConfig = UNIVERSE) -> "Home":
        """The home after it has ingested these rows alone, and derived."""
        self.write("part.parquet", rows)
        self.ingest()
        derive(self.warehouse, universe)
        return self

    def query(self, query: str) -> list[tuple[Any, ...]]:
        with self.warehouse.connect(read_only=True) as con:
            return con.execute(query).fetchall()

    def write(self, name: str, rows: pl.DataFrame) -> Path:
        path = self.files / name
        rows.write_parquet(path) if path.suffix == ".parquet" else rows.write_csv(path)
        return path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def new_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Home]:
    return lambda: Home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def no_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any batch passes: the contract is tested elsewhere, and costs a second each time."""
    monkeypatch.setattr("finjepa_pipeline.prices.contract.judge", lambda *_: ())
