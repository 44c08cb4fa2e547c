"""A home whose panel grows night after night: the rows of the panel before are never touched, whatever happens."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from finjepa_model.training.panel import Panel
from finjepa_pipeline.features.panel import build_panel
from finjepa_pipeline.prices.derive import UniverseConfig, derive
from finjepa_pipeline.prices.ingest import ingest
from finjepa_pipeline.prices.sources import PriceSourceConfig
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse
from tests.pipeline.features.test_growth import assert_same, rows_of
from tests.pipeline.prices.frames import prices

UNIVERSE = UniverseConfig(min_history=60, window=21, min_price=1, min_dollar_volume=1)
SYMBOLS = tuple("ABCDEFGH")
DAYS = 1100
KILL_ITSELF = """
import os, signal, sys
from pathlib import Path
from finjepa_pipeline.features import panel, writer
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse

def killed(self, identity):
    os.kill(os.getpid(), signal.SIGKILL)

writer.PanelWriter.finish = killed  # everything is written but the manifest
settings = Settings(home=Path(sys.argv[1]))
with Warehouse.from_settings(settings).connect() as connection:
    panel.build_panel(connection, settings)
"""


def night(home: Path, rows: pl.DataFrame) -> Settings:
    """Prices arrive and are validated; the panel is still to be made."""
    settings = Settings(home=home / "home").ensure()
    warehouse = Warehouse.from_settings(settings)
    (home / "files").mkdir(exist_ok=True)
    rows.write_parquet(home / "files" / "prices.parquet")
    ingest(warehouse, settings, PriceSourceConfig(data_source="files", path=str(home / "files")))
    derive(warehouse, UNIVERSE)
    return settings


def panel_after(home: Path, rows: pl.DataFrame) -> Panel:
    settings = night(home, rows)
    with Warehouse.from_settings(settings).connect() as connection:
        return Panel.open(build_panel(connection, settings))


def dividend(rows: pl.DataFrame, symbol: str) -> pl.DataFrame:
    """One of 2 % that is paid on the last day."""
    last = rows["date"].max()
    scaled = (pl.col("symbol") == symbol) & (pl.col("date") < last)
    return rows.with_columns(adj_close=pl.when(scaled).then(pl.col("adj_close") * 0.98).otherwise("adj_close"))


@pytest.fixture(scope="module")
def everything() -> pl.DataFrame:
    return prices(SYMBOLS, DAYS)


def until(rows: pl.DataFrame, days_before_the_end: int) -> pl.DataFrame:
    days = rows["date"].unique().sort()
    return rows.filter(pl.col("date") <= days[-1 - days_before_the_end])


def same_file(one: Panel, other: Panel) -> bool:
    return os.path.samefile(one.folder / "features.npy", other.folder / "features.npy")


def test_nights_share_a_file_and_equal_rebuilds(everything: pl.DataFrame, tmp_path: Path):
    base = panel_after(tmp_path / "a", until(everything, 3))
    seen = {name: column.copy() for name, column in rows_of(base).items()}
    grown = panel_after(tmp_path / "a", until(everything, 2))
    paid = panel_after(tmp_path / "a", dividend(until(everything, 1), "C"))
    assert same_file(base, grown)
    assert same_file(grown, paid)
    assert paid.manifest["grown_from"] == grown.content_hash
    assert_same(paid, panel_after(tmp_path / "c", dividend(until(everything, 1), "C")))
    for name, column in rows_of(base).items():  # through the map that was opened before
        np.testing.assert_array_equal(column, seen[name], err_msg=name)


def test_what_restates_the_past_of_all_gets_a_file_of_its_own(everything: pl.DataFrame, tmp_path: Path):
    """A volume of last week moves ranks and weights of everybody since then."""
    base = panel_after(tmp_path / "a", until(everything, 1))
    seen = {name: column.copy() for name, column in rows_of(base).items()}
    day = everything["date"].unique().sort()[-6]
    corrected = everything.with_columns(
        volume=pl.when((pl.col("symbol") == "B") & (pl.col("date") == day))
        .then(pl.col("volume") * 5)
        .otherwise("volume")
    )
    grown = panel_after(tmp_path / "a", corrected)
    assert not same_file(base, grown)
    assert_same(grown, panel_after(tmp_path / "b", corrected))
    for name, column in rows_of(base).items():
        np.testing.assert_array_equal(column, seen[name], err_msg=name)


def test_a_base_grows_in_place_once(everything: pl.DataFrame, tmp_path: Path):
    """Another future of the same base must not write over the first one."""
    base = panel_after(tmp_path / "a", until(everything, 1))
    first = panel_after(tmp_path / "a", everything)
    seen = {name: column.copy() for name, column in rows_of(first).items()}
    assert panel_after(tmp_path / "a", until(everything, 1)).folder == base.folder
    last = everything["date"].max()
    other = everything.with_columns(
        close=pl.when((pl.col("symbol") == "D") & (pl.col("date") == last)).then(pl.col("low")).otherwise("close")
    ).with_columns(adj_close=pl.col("close") * 0.9)
    second = panel_after(tmp_path / "a", other)
    assert not same_file(first, second)
    assert_same(second, panel_after(tmp_path / "b", other))
    for name, column in rows_of(first).items():
        np.testing.assert_array_equal(column, seen[name], err_msg=name)


def test_a_killed_growth_leaves_nothing_that_counts(everything: pl.DataFrame, tmp_path: Path):
    base = panel_after(tmp_path / "a", until(everything, 1))
    seen = {name: column.copy() for name, column in rows_of(base).items()}
    settings = night(tmp_path / "a", everything)
    killed = subprocess.run([sys.executable, "-c", KILL_ITSELF, str(settings.home)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert any(settings.panels.glob(".tmp-*"))
    for name, column in rows_of(Panel.open(base.folder)).items():
        np.testing.assert_array_equal(column, seen[name], err_msg=name)
    grown = panel_after(tmp_path / "a", everything)
    assert same_file(base, grown)
    assert not any(settings.panels.glob(".tmp-*"))
    assert_same(grown, panel_after(tmp_path / "b", everything))
