"""The panel is made once of every kind of source; what was known at a close does not move, whatever happens later."""

import datetime
import json
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest

from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.features import CHANNELS
from finjepa_pipeline.features import build_panel, current_panel
from finjepa_pipeline.prices.history import Revision
from finjepa_pipeline.settings import Settings
from tests.pipeline.features.market_frames import OHLC, awkward_market, channel_frame, panel_of, warehouse_of

CUT = pl.date(2016, 6, 1)
NAMES = [channel.name for channel in CHANNELS]


@pytest.fixture(scope="module")
def prices() -> pl.DataFrame:
    return awkward_market()


@pytest.fixture(scope="module")
def whole(prices: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Panel:
    return panel_of(prices, tmp_path_factory.mktemp("known") / "panel")


@pytest.fixture(scope="module")
def known(whole: Panel) -> pl.DataFrame:
    return channel_frame(whole)


def changed(prices: pl.DataFrame, how: str) -> tuple[pl.DataFrame, bool]:
    """The market with its future changed, or its scale; and whether only the days before CUT must stay."""
    future = pl.col("date") >= CUT
    rng = np.random.default_rng(1)
    match how:
        case "cut":
            return prices.filter(~future), True
        case "noise":
            noise = pl.Series(np.exp(rng.normal(0, 0.3, len(prices))))
            return prices.with_columns(pl.when(future).then(pl.col(*OHLC, "volume", "dollar_volume") * noise)
                                       .otherwise(pl.col(*OHLC, "volume", "dollar_volume"))), True  # fmt: skip
        case "later dividends and splits":  # back-adjustment scales everything before the event
            factor = pl.when(future).then(1.0).otherwise(0.5 * 0.97)
            return prices.with_columns(pl.col(*OHLC) * factor), True
        case "scale":
            factor = pl.when(pl.col("entity") == "S00").then(1000.0).when(pl.col("entity") == "S03").then(1e-3)
            return prices.with_columns(pl.col(*OHLC) * factor.otherwise(1.0)), False
    raise ValueError(how)


@pytest.mark.parametrize("how", ["cut", "noise", "later dividends and splits", "scale"])
def test_every_channel_and_the_market_keep_what_was_known(prices, whole: Panel, known, how: str, tmp_path: Path):
    other, only_past = changed(prices, how)
    panel = panel_of(other, tmp_path / "panel")
    before, after = (
        frame.filter(pl.col("date") < CUT) if only_past else frame for frame in (known, channel_frame(panel))
    )
    assert before.select("entity", "date").equals(after.select("entity", "date"))
    for name in [*NAMES, "beta", "returns"]:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-6, atol=1e-6, err_msg=f"{name} after {how}")
    days = int((whole.dates < np.datetime64("2016-06-01")).sum()) if only_past else len(whole.dates)
    for name in ("market_returns", "market_features"):
        np.testing.assert_allclose(getattr(panel, name)[:days], getattr(whole, name)[:days], atol=1e-6, err_msg=name)
    assert (whole.market_features[300:].std(axis=0) > 0).all()


def test_the_order_of_symbols_does_not_matter(prices: pl.DataFrame, known: pl.DataFrame, tmp_path: Path):
    names = sorted(prices["entity"].unique())
    mirror = dict(zip(names, reversed(names), strict=True))
    renamed = prices.with_columns(pl.col("entity").replace(mirror))
    again = channel_frame(panel_of(renamed, tmp_path / "panel", payer=mirror["S00"])).with_columns(
        pl.col("entity").replace(mirror)
    )
    again = again.sort("entity", "date")
    for name in [*NAMES, "beta", "returns"]:
        np.testing.assert_allclose(again[name], known[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_a_channel_says_how_far_it_looks_back(prices: pl.DataFrame, whole: Panel, tmp_path: Path):
    """Values of an asset that are further back than the table's lookback do not matter."""
    row = whole.rows(whole.date_index(whole.dates[-1]), whole.assets.index("S00"))
    market = {"beta_63", "residual_volatility_63"}  # they look at the market, which listens to S00
    for channel in (c for c in CHANNELS if c.lookback and c.name not in market):
        head = pl.col("date").is_in(whole.dates[: -1 - channel.lookback].tolist()) & (pl.col("entity") == "S00")
        noisy = prices.with_columns(
            pl.when(head).then(pl.col(*OHLC) * pl.int_range(1, pl.len() + 1)).otherwise(pl.col(*OHLC))
        )
        again: Panel = panel_of(noisy, tmp_path / channel.name)
        column = whole.channels.index(channel.name)
        found, wanted = again.features[row, column], whole.features[row, column]
        np.testing.assert_allclose(found, wanted, atol=1e-6, err_msg=channel.name)


def test_rounding_is_no_spread(prices: pl.DataFrame, tmp_path: Path):
    """A flat day inside the range of its neighbours has an estimate of zero but for rounding, which differs with the scale."""
    rng = np.random.default_rng(3)
    up, down = (pl.Series(rng.uniform(0.1, 0.9, len(prices))) for _ in range(2))
    busy = pl.int_range(pl.len()).over("entity") % 2 == 0
    wide = {"open": 10.0, "high": 10.0 + up, "low": 10.0 - down, "close": 10.0}
    still = pl.col("entity") == "S00"
    market = prices.with_columns(
        pl.when(still).then(pl.when(busy).then(value).otherwise(10.0)).otherwise(pl.col(name)).alias(name)
        for name, value in wide.items()
    )
    scaled = market.with_columns(pl.when(still).then(pl.col(*OHLC) * 0.485).otherwise(pl.col(*OHLC)))
    for name, frame in (("one", market), ("other", scaled)):
        shown = channel_frame(panel_of(frame, tmp_path / name)).filter(pl.col("entity") == "S00")["spread_21"]
        np.testing.assert_array_equal(shown, 0.0, err_msg=name)


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


def test_the_asset_shows_the_table_and_reuses_its_panel(settings: Settings):
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
    assert [metadata["reused"].value for metadata in shown] == [False, True]
    assert shown[0]["dagster/row_count"].value == Panel.open(current_panel(settings)).lengths.sum()
