"""From a frame of prices to risk and weights, with the model package alone."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_model.features import read_prices
from finjepa_model.planners import PLANNERS
from tests.model.frames import download, reader

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


_ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {others}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import polars as pl
from finjepa_model import FinJEPA, FinJEPAError
model = FinJEPA.from_pretrained(sys.argv[1])
prices = pl.read_parquet(sys.argv[2])
forecast = model.forecast(prices)
decision = model.decide(prices)
assert forecast.volatility.height == decision.to_frame().height == 6
try:
    forecast.plot()
except FinJEPAError as error:
    assert "pip install plotly" in str(error)
assert "finjepa_pipeline" not in sys.modules
"""


def test_the_model_package_needs_none_of_the_pipelines_libraries(tmp_path: Path, model, prices) -> None:
    model.save_pretrained(tmp_path / "checkpoint")
    read_prices(prices).rows.write_parquet(tmp_path / "prices.parquet")
    others = {"dagster", "duckdb", "skfolio", "scipy", "sklearn", "pandas", "pyarrow", "plotly", "pydantic", "click", "rich",
              "datasets", "arch", "great_expectations", "exchange_calendars", "jinja2", "ray"}  # fmt: skip
    command = [
        sys.executable,
        "-c",
        _ALONE.replace("{others}", repr(others)),
        tmp_path / "checkpoint",
        tmp_path / "prices.parquet",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
