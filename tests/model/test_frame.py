"""`read_prices`: the same prices from every shape of frame, in words what was understood, and a guess where nothing was."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_model.features import read_prices

SYMBOLS = ["AAPL", "LOW", "V"]  # of which one is called like a field


def download() -> pd.DataFrame:
    """As `yfinance.download(..., auto_adjust=False)` gives it: the fields above the symbols."""
    days = pd.bdate_range("2020-01-01", periods=30, name="Date")
    close_DN = 50 * np.exp(np.random.default_rng(0).normal(0, 0.01, (30, 3)).cumsum(0))
    close = pd.DataFrame(close_DN, index=days, columns=SYMBOLS)
    close.iloc[:5, 2] = np.nan  # V came later
    fields = {"Adj Close": 0.9, "Close": 1.0, "High": 1.01, "Low": 0.99, "Open": 1.001, "Volume": 1e6}
    return pd.concat({name: close * factor for name, factor in fields.items()}, axis=1, names=["Price", "Ticker"])


def long(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.stack(level=1).dropna().reset_index()


SHAPES: dict[str, Callable[[pd.DataFrame], Any]] = {
    "fields above symbols": lambda x: x,
    "symbols above fields": lambda x: x.swaplevel(axis=1).sort_index(axis=1),
    "no names": lambda x: x.rename_axis(index=None, columns=[None, None]),
    "a zone": lambda x: x.tz_localize("Asia/Tokyo"),
    "one level": lambda x: x.set_axis([f"{field}_{symbol}" for field, symbol in x.columns], axis=1),
    "one level, symbols first": lambda x: x.set_axis([f"{symbol} {field}" for field, symbol in x.columns], axis=1),
    "long": long,
    "two levels of index": lambda x: long(x).set_index(["Ticker", "Date"]),
    "capitals, dates as text": lambda x: long(x).rename(columns=str.upper).assign(DATE=lambda y: y["DATE"].astype(str)),
    "shuffled, with a counter": lambda x: long(x).sample(frac=1, random_state=1).rename(columns={"Ticker": "tic"}),
    "Polars, long": lambda x: pl.from_pandas(long(x)),
    "Polars, from two levels": lambda x: pl.from_pandas(x.reset_index()),
    "Polars, lazy": lambda x: pl.from_pandas(long(x)).lazy(),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_prices(shape: str) -> None:
    expected = long(download())
    found = read_prices(SHAPES[shape](download()))
    assert found.rows.columns == ["symbol", "date", "open", "high", "low", "close", "volume", "adj_close"]
    assert found.rows.height == 85
    for symbol in SYMBOLS:
        mine, whole = found.rows.filter(symbol=symbol), expected[expected["Ticker"] == symbol]
        assert mine["date"].to_list() == [day.date() for day in whole["Date"]]
        for name, column in (("close", "Close"), ("adj_close", "Adj Close"), ("low", "Low"), ("volume", "Volume")):
            np.testing.assert_allclose(mine[name].to_numpy(), whole[column].to_numpy(), rtol=1e-12)
    assert found.understood == ("3 symbols, 2020-01-01 to 2020-02-11", "close adjusted")


def test_a_wide_frame_of_closes_says_what_it_lacks() -> None:
    closes = download()["Close"]
    for frame in (closes, pl.from_pandas(closes.reset_index()), closes.rename_axis(index=None)):
        found = read_prices(frame)
        assert found.rows.group_by("symbol").len().sort("symbol").rows() == [("AAPL", 30), ("LOW", 30), ("V", 25)]
        assert found.understood[1] == "close taken as adjusted, no open, high, low, volume"


def test_raw_closes_are_adjusted_by_their_dividends_and_splits_and_adjusted_ones_are_left() -> None:
    days = pd.bdate_range("2020-01-01", periods=40)
    value_T = 100 * np.exp(np.random.default_rng(1).normal(0, 0.01, 40).cumsum())  # of one share, dividends reinvested
    split_T, dividend_T = np.ones(40), np.zeros(40)
    split_T[20], dividend_T[10] = 4.0, 2.0
    raw_T = np.empty(40)
    raw_T[0] = value_T[0]
    for t in range(1, 40):
        raw_T[t] = (raw_T[t - 1] * value_T[t] / value_T[t - 1] - dividend_T[t]) / split_T[t]
    events = {
        "Dividends": dividend_T,
        "Stock Splits": np.where(split_T > 1, split_T, 0.0),
        "symbol": "AAPL",
        "date": days,
    }
    adjusted = read_prices(pd.DataFrame({"Close": raw_T, **events})).rows
    np.testing.assert_allclose(adjusted["adj_close"] / adjusted["adj_close"][-1], value_T / value_T[-1], rtol=1e-12)
    as_yfinance_gives_it = read_prices(pd.DataFrame({"Close": value_T, **events})).rows
    assert "adj_close" not in as_yfinance_gives_it.columns


def test_what_is_no_price_is_left_out_and_counted() -> None:
    rows = long(download())
    rows.loc[3, "Close"] = -1.0
    rows.loc[4, "High"] = rows.loc[4, "Low"] / 2
    rows.loc[5, "Close"] = np.inf
    found = read_prices(pd.concat([rows, rows.iloc[10:12]]))
    assert found.rows.height == 82
    assert (
        found.understood[2]
        == "left out: 1 rows without a symbol or a close, 2 rows that are no prices, 2 rows that come twice"
    )


def test_what_cannot_be_understood_is_refused_with_the_nearest_guess() -> None:
    frame, rows = download(), long(download())
    day_first = rows.assign(Date=rows["Date"].dt.strftime("%d/%m/%Y"))
    for odd, way_out in (
        (rows.rename(columns={"Close": "Clse", "Adj Close": "adj"}), "is 'Clse' the close"),
        (rows.rename(columns={"Date": "datum"}), "is 'datum' the date"),
        (frame.xs("AAPL", axis=1, level=1), r"prices\['symbol'\] = 'AAPL'"),
        (frame["Close"].pct_change(), "are these returns"),
        (frame["Close"].reset_index(drop=True), "no column of dates"),
        (day_first, "date_format='%d/%m/%Y'"),
        (rows.assign(close=rows["Close"]), "Close and close; which one"),
        (rows.astype({"Close": object}).assign(Close="soon"), "'soon', which is not a number"),
        ({"AAPL": [1.0]}, "not dict"),
    ):
        with pytest.raises(FinJEPAError, match=way_out):
            read_prices(odd)
    assert read_prices(day_first, date_format="%d/%m/%Y").rows.equals(read_prices(rows).rows)
