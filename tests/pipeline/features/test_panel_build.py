"""The panel is made once, named by what made it, and built of every kind of source."""

import datetime
import json
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest

from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.features import build_panel, current_panel
from finjepa_pipeline.prices.history import Revision
from finjepa_pipeline.settings import Settings
from tests.pipeline.features.market_frames import awkward_market, panel_of, warehouse_of


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home").ensure()


@pytest.fixture(autouse=True)
def revision(monkeypatch: pytest.MonkeyPatch) -> Revision:
    day = datetime.date(2020, 1, 1)
    found = Revision(1, "test", "test", "1", "abc", 1, 0, day, day, ("close",))
    monkeypatch.setattr("finjepa_pipeline.features.panel.current_revision", lambda connection: found)
    monkeypatch.setattr("finjepa_pipeline.features.panel.derived_options", lambda connection: "{}")
    return found


def test_a_second_build_is_the_first_one(settings: Settings):
    connection = warehouse_of(awkward_market())
    folder = build_panel(connection, settings)
    stamp = (folder / "features.npy").stat().st_mtime_ns
    assert current_panel(settings) == folder
    assert build_panel(connection, settings) == folder
    assert (folder / "features.npy").stat().st_mtime_ns == stamp
    assert sorted(path.name for path in settings.panels.iterdir()) == sorted([folder.name, "current.json"])


def test_other_channels_are_another_panel(settings: Settings):
    connection = warehouse_of(awkward_market())
    whole = build_panel(connection, settings)
    part = build_panel(connection, settings, ["momentum_21", "log_return"])
    assert part != whole
    assert Panel.open(part).channels == ("log_return", "momentum_21")
    with pytest.raises(FinJEPAError, match="momentum_7"):
        build_panel(connection, settings, ["momentum_7"])


def test_close_only_leaves_out_what_needs_more(tmp_path: Path):
    prices = awkward_market().drop("open", "high", "low", "volume", "dollar_volume")
    panel = panel_of(prices, tmp_path / "panel")
    assert "log_return" in panel.channels
    assert "overnight_return" not in panel.channels
    assert np.isfinite(panel.features).all()


def test_rows_are_sessions_and_gaps_are_masked(tmp_path: Path):
    prices = awkward_market()
    panel = panel_of(prices, tmp_path / "panel")
    counts = dict(prices.group_by("entity").len().iter_rows())
    for asset, name in enumerate(panel.assets):
        rows = panel.offsets[asset] + np.arange(panel.lengths[asset])
        assert panel.observed[rows].sum() == counts[name]
        assert panel.observed[rows[0]]
        assert panel.observed[rows[-1]]
        assert not panel.features[rows[~panel.observed[rows]]].any()
        assert not panel.eligible[rows[~panel.observed[rows]]].any()
    gap = panel.rows(np.arange(200, 213), panel.assets.index("S03"))
    assert panel.observed[gap].tolist() == [False] * 12 + [True]
    closes = prices.filter(pl.col("entity") == "S03")["close"]
    assert panel.returns[gap[-1]] == pytest.approx(closes[200] / closes[199] - 1, rel=1e-6)
    assert np.abs(panel.features).max() <= 5.0
    assert np.isfinite(panel.market_returns).all()


def test_an_empty_warehouse_is_said_so(settings: Settings):
    with pytest.raises(FinJEPAError, match="finjepa ingest"):
        build_panel(warehouse_of(awkward_market().head(0)), settings)
    with pytest.raises(FinJEPAError, match="no feature panel"):
        current_panel(settings)
    (settings.panels / "current.json").write_text(json.dumps({"panel": "gone"}))
    with pytest.raises(FinJEPAError, match="gone"):
        current_panel(settings)


def test_the_asset_shows_the_table_and_pictures(settings: Settings):
    from finjepa_pipeline.features.assets import feature_panel
    from finjepa_pipeline.settings import SettingsResource
    from finjepa_pipeline.warehouse import Warehouse

    with warehouse_of(awkward_market()) as memory:
        memory.execute(f"ATTACH '{settings.warehouse}' AS home")
        memory.execute("COPY FROM DATABASE memory TO home")
    resources = {"settings": SettingsResource(home=str(settings.home)), "warehouse": Warehouse.from_settings(settings)}
    shown = []
    for _ in range(2):
        result = dg.materialize([feature_panel], resources=resources)
        shown.append(result.asset_materializations_for_node("feature_panel")[0].metadata)
    assert "| momentum_252_21 |" in str(shown[0]["channel_table"].value)
    assert "data:image/svg+xml" in str(shown[0]["coverage"].value)
    assert [metadata["reused"].value for metadata in shown] == [False, True]
    assert shown[0]["dagster/row_count"].value == Panel.open(current_panel(settings)).lengths.sum()
