"""What was known at a close does not move, whatever happens later or to the scale of prices."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from finjepa_model.data.panel import Panel
from finjepa_model.features import CHANNELS
from tests.pipeline.features.market_frames import OHLC, awkward_market, channel_frame, panel_of

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
