"""A panel that grew is the panel that would have been built, bit for bit."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from finjepa_model.training.panel import Panel
from finjepa_pipeline.features.growth import Base
from tests.pipeline.features.market_frames import OHLC, awkward_market, panel_of

LENGTH = 1100


@pytest.fixture(scope="module")
def prices() -> pl.DataFrame:
    return awkward_market(sessions=LENGTH, assets=9)


@pytest.fixture(scope="module")
def last(prices: pl.DataFrame) -> list:
    return sorted(prices["date"].unique())


def assert_same(grown: Panel, built: Panel):
    assert grown.manifest["grown_from"] is not None
    assert built.manifest["grown_from"] is None
    assert grown.assets == built.assets
    for name in ("first", "lengths", "dates", "market_returns", "market_features"):
        np.testing.assert_array_equal(getattr(grown, name), getattr(built, name), err_msg=name)
    kept, made = Base(grown.folder), Base(built.folder)
    np.testing.assert_array_equal(kept.sums_DK, made.sums_DK)
    np.testing.assert_array_equal(kept.together_2D, made.together_2D)
    assert rows_of(grown).keys() == rows_of(built).keys()
    for name, column in rows_of(built).items():
        np.testing.assert_array_equal(rows_of(grown)[name], column, err_msg=name)


def rows_of(panel: Panel) -> dict[str, np.ndarray]:
    """Every column of the rows that the assets own, asset after asset."""
    rows = np.concatenate([start + np.arange(n) for start, n in zip(panel.offsets, panel.lengths, strict=True)])
    columns = {name: getattr(panel, name)[rows] for name in ("returns", "observed", "tradable", "eligible", "beta")}
    columns |= {name: panel.features[rows, i] for i, name in enumerate(panel.channels)}
    return columns | {"liquidity": Base(panel.folder).liquidity[rows]}


@pytest.mark.parametrize("days", [1, 3, 40])
def test_new_days_append(prices: pl.DataFrame, last: list, days: int, tmp_path: Path):
    base = panel_of(prices.filter(pl.col("date") < last[-days]), tmp_path / "base")
    grown = panel_of(prices, tmp_path / "grown", base=base.folder)
    assert_same(grown, panel_of(prices, tmp_path / "built"))


def test_day_after_day_is_the_same_too(prices: pl.DataFrame, last: list, tmp_path: Path):
    folder = panel_of(prices.filter(pl.col("date") < last[-5]), tmp_path / "base").folder
    for day in range(-5, 0):
        known = prices.filter(pl.col("date") <= last[day])
        folder = panel_of(known, tmp_path / f"day{day}", base=folder).folder
    assert_same(Panel.open(folder), panel_of(prices, tmp_path / "built"))


@pytest.mark.parametrize("what", ["a recent price", "a dividend", "a new symbol", "an old volume"])
def test_a_restated_symbol_is_made_again(prices: pl.DataFrame, last: list, what: str, tmp_path: Path):
    before = prices.filter(pl.col("date") < last[-1])
    one = pl.col("entity") == "S05"
    match what:
        case "a recent price":
            row = one & (pl.col("date") == last[-20])
            after = prices.with_columns(
                pl.when(row).then(pl.col("close") * 1.02).otherwise(pl.col("close")).alias("close")
            )
        case "a dividend":  # back-adjustment scales the whole history
            row = one & (pl.col("date") < last[-1])
            after = prices.with_columns(pl.when(row).then(pl.col(*OHLC) * 0.987).otherwise(pl.col(*OHLC)))
        case "a new symbol":
            before = before.filter(~one)
            after = prices.filter(~one | (pl.col("date") >= last[-30]))
        case _:
            row = one & (pl.col("date") == last[-250])
            after = prices.with_columns(
                pl.when(row).then(pl.col("dollar_volume") * 3).otherwise(pl.col("dollar_volume")).alias("dollar_volume")
            )
    base = panel_of(before, tmp_path / "base")
    grown = panel_of(after, tmp_path / "grown", base=base.folder)
    built = panel_of(after, tmp_path / "built")
    if what == "an old volume" and grown.manifest["grown_from"] is None:
        pytest.skip("so much hangs on it that the panel was built anew")
    assert_same(grown, built)


def test_another_past_is_built_anew(prices: pl.DataFrame, tmp_path: Path):
    base = panel_of(prices, tmp_path / "base")
    fewer = prices.filter(pl.col("entity") != "S02")
    assert panel_of(fewer, tmp_path / "fewer", base=base.folder).manifest["grown_from"] is None
