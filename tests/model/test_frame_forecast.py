"""From a frame of prices, whatever its shape, to risk and weights, with the model package alone or the optimisers of skfolio."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from skfolio.optimization import HierarchicalRiskParity, MeanRisk
from skfolio.prior import EmpiricalPrior
from sklearn.base import clone

from finjepa_model.errors import FinJEPAError
from finjepa_model.features import read_prices
from finjepa_model.planners import PLANNERS
from finjepa_model.sklearn import FinJEPACovariance
from tests.model.frames import download, reader

SYMBOLS = ["AAPL", "LOW", "V"]  # of which one is called like a field


def three_symbols() -> pd.DataFrame:
    """Of which one came later."""
    frame = download(assets=3, days=30).rename(columns=dict(zip(("S00", "S01", "S02"), SYMBOLS, strict=True)), level=1)
    frame.loc[frame.index[:5], pd.IndexSlice[:, "V"]] = np.nan
    return frame


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
    expected = long(three_symbols())
    found = read_prices(SHAPES[shape](three_symbols()))
    assert found.rows.columns == ["symbol", "date", "open", "high", "low", "close", "volume", "adj_close"]
    assert found.rows.height == 85
    for symbol in SYMBOLS:
        mine, whole = found.rows.filter(symbol=symbol), expected[expected["Ticker"] == symbol]
        assert mine["date"].to_list() == [day.date() for day in whole["Date"]]
        for name, column in (("close", "Close"), ("adj_close", "Adj Close"), ("low", "Low"), ("volume", "Volume")):
            np.testing.assert_allclose(mine[name].to_numpy(), whole[column].to_numpy(), rtol=1e-12)
    assert found.understood == ("3 symbols, 2019-01-01 to 2019-02-11", "close adjusted")


def test_a_wide_frame_of_closes_says_what_it_lacks() -> None:
    closes = three_symbols()["Close"]
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
    rows = long(three_symbols())
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
    frame, rows = three_symbols(), long(three_symbols())
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


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model():
    return reader()


@pytest.fixture(scope="module")
def prices() -> pd.DataFrame:
    return download()


def test_pandas_gives_pandas_and_polars_gives_polars_with_the_same_numbers(model, prices) -> None:
    mine, other = model.forecast(prices), model.forecast(pl.from_pandas(prices.stack(level=1).reset_index()))
    assert mine.volatility.columns.tolist() == [5, 21, 63]
    assert other.volatility.columns == ["symbol", "5", "21", "63"]
    for name in ("volatility", "covariance", "correlation", "expected_return"):
        left, right = getattr(mine, name), getattr(other, name)
        assert right["symbol"].to_list() == left.index.tolist() == list(mine.assets)
        np.testing.assert_allclose(
            right.drop("symbol").to_numpy(), left.to_numpy().reshape(6, -1), rtol=1e-6, atol=1e-12
        )
    month_N = mine.volatility[21].to_numpy()
    np.testing.assert_allclose(np.diag(mine.covariance), month_N**2, rtol=1e-5)
    decision = model.decide(prices)
    assert isinstance(decision.weights, pd.Series)
    assert decision.weights.sum() == pytest.approx(1)
    assert decision.holdings.sum() + decision.cash == pytest.approx(1)
    assert decision.to_frame()["trade"].tolist() == decision.holdings.tolist()
    polars = model.decide(pl.from_pandas(prices.stack(level=1).reset_index()))
    assert polars.holdings.columns == ["symbol", "holding"]
    np.testing.assert_allclose(polars.holdings["holding"], decision.holdings, atol=1e-6)


def test_a_forecast_tells_what_it_read_and_what_it_left_out(model, prices) -> None:
    frame = prices.copy()
    frame.loc[frame.index[:100], pd.IndexSlice[:, "S01"]] = np.nan
    frame.loc[frame.index[-3:], pd.IndexSlice[:, "S02"]] = np.nan
    found = model.forecast(frame.drop(columns="Volume", level=0))
    assert found.assets == ("S00", "S03", "S04", "S05")
    assert "close adjusted, no volume: 19 of 23 channels" in found.understood
    assert "1 symbol left out (S01): fewer than 252 sessions" in found.understood
    assert f"1 symbol left out (S02): no price on {frame.index[-1].date()}" in found.understood
    assert "nothing is known" not in found.understood
    with pytest.raises(FinJEPAError, match="no symbol has 252 sessions"):
        model.forecast(prices.iloc[:200])


def test_nothing_is_known_of_returns_where_the_readout_is_off(prices) -> None:
    model = reader()
    model.readout.weights_Z.zero_()
    found = model.forecast(prices)
    assert found.understood.endswith("nothing is known: the same for every asset")
    assert found.expected_return.nunique() == 1
    assert "rests on risk and costs alone" in model.decide(prices).explain()


def test_a_split_that_adj_close_explains_is_no_risk(model, prices) -> None:
    raw, adjusted = model.forecast(prices), model.forecast(prices["Adj Close"])
    assert adjusted.volatility.loc["S00", 21] == pytest.approx(raw.volatility.loc["S00", 21], rel=0.15)
    jumps = prices["Close"].iloc[-80:].assign(S00=lambda x: x["S00"].where(np.arange(80) < 40, x["S00"] / 4))
    wild = model.forecast(pd.concat([prices["Close"].iloc[:-80], jumps]))
    assert wild.volatility.loc["S00", 63] > 1.5 * raw.volatility.loc["S00", 63]


def test_quantiles_are_of_any_level_and_portfolio(model, prices) -> None:
    found = model.forecast(prices)
    table = found.quantiles([0.05, 0.5, 0.95], horizon=5)
    assert (table[0.05] < table[0.95]).all()
    alone = found.portfolio_quantiles({"S03": 1.0}, 0.05, 21)[0.05]
    assert alone == pytest.approx(found.quantiles(0.05).loc["S03", 0.05], rel=0.3)
    for wrong in ({"q": 1.5}, {"horizon": 63}):
        with pytest.raises(FinJEPAError):
            found.quantiles(**wrong)
    with pytest.raises(FinJEPAError, match="TSLA is none of the symbols"):
        found.portfolio_quantiles({"TSLA": 1.0})


def test_what_is_held_counts_and_is_named(model, prices) -> None:
    first = model.decide(prices)
    again = model.decide(prices, holdings=first.holdings)
    assert np.abs(again.to_frame()["trade"]).sum() < 0.2 * np.abs(first.to_frame()["trade"]).sum() + 1e-9
    assert model.decide(prices, holdings=dict(first.holdings)).holdings.equals(again.holdings)
    with pytest.raises(FinJEPAError, match="TSLA is none of the symbols"):
        model.decide(prices, holdings={"TSLA": 0.5})
    limited = model.decide(prices, utility="log_growth - 2.5*variance, gross <= 0.3")
    assert limited.holdings.abs().sum() <= 0.3 + 1e-6
    with pytest.raises(FinJEPAError, match="unknown planner"):
        model.decide(prices, planner="best")


@pytest.mark.parametrize("planner", sorted(set(PLANNERS) - {"td"}))
def test_every_planner_decides_and_a_seed_repeats_it(planner: str, model, prices) -> None:
    one, other = (model.decide(prices, planner=planner, seed=3) for _ in range(2))
    assert one.holdings.equals(other.holdings)
    assert one.expected_volatility >= 0


def test_a_plot_has_a_fan_and_a_map(model, prices) -> None:
    pytest.importorskip("plotly")
    kinds = [trace.type for trace in model.forecast(prices).plot().data]
    assert kinds == ["scatter"] * 4 + ["heatmap"]


@pytest.fixture(scope="module")
def closes(prices) -> pd.DataFrame:
    return prices["Adj Close"][["S03", "S00", "S05", "S01", "S04", "S02"]]  # in an order of their own


def test_the_estimator_of_skfolio_is_the_forecast_in_the_order_of_the_columns(model, closes) -> None:
    returns = closes.pct_change().iloc[1:]
    expected = model.forecast(closes).covariance.loc[closes.columns, closes.columns].to_numpy()
    for given in (closes, returns):
        found = FinJEPACovariance(model).fit(given)
        np.testing.assert_allclose(found.covariance_, expected, rtol=1e-4)
        assert list(found.feature_names_in_) == list(closes.columns)
    assert FinJEPACovariance(model).fit(returns.to_numpy()).covariance_.shape == (6, 6)


def test_an_optimiser_uses_the_estimator(model, closes, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    returns = closes.pct_change().iloc[1:]
    covariance = clone(FinJEPACovariance(str(tmp_path)))
    least = MeanRisk(prior_estimator=EmpiricalPrior(covariance_estimator=covariance)).fit(returns)
    held, expected = least.weights_, FinJEPACovariance(model).fit(returns).covariance_
    assert held.sum() == pytest.approx(1)
    for other in (np.full(6, 1 / 6), *np.eye(6)):
        assert held @ expected @ held <= other @ expected @ other + 1e-9
    prior = EmpiricalPrior(covariance_estimator=FinJEPACovariance(model))
    assert HierarchicalRiskParity(prior_estimator=prior).fit(returns).weights_.sum() == pytest.approx(1)


def test_what_the_estimator_needs_is_said(model, closes) -> None:
    with pytest.raises(FinJEPAError, match="needs a folder"):
        FinJEPACovariance().fit(closes)
    with pytest.raises(FinJEPAError, match="252 sessions"):
        FinJEPACovariance(model).fit(closes.iloc[-100:])
