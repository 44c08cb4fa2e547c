"""A frame of prices gives what the pipeline gives on the same prices."""

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from skfolio.datasets import load_sp500_dataset

from finjepa_model.data.panel import Panel
from finjepa_model.features import read_prices
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_pipeline.features import build_panel
from finjepa_pipeline.prices.derive import UniverseConfig, derive
from finjepa_pipeline.prices.ingest import ingest
from finjepa_pipeline.prices.sources import PriceSourceConfig
from finjepa_pipeline.publishing import decision as decisions
from finjepa_pipeline.publishing.book import cash
from finjepa_pipeline.publishing.decision import decide, forecast
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import NamedCheckpoint
from finjepa_pipeline.warehouse import Warehouse
from tests.model.frames import download, reader


def events() -> pd.DataFrame:
    """Splits, a dividend, a jump like a split, a stale week, days without a trade, a late listing and an end."""
    frame = download(assets=8, days=420)
    frame.loc[frame.index[200], ("Volume", "S03")] *= 2
    for field in ("Close", "Adj Close", "High", "Low", "Open"):
        frame[field, "S03"] = np.where(np.arange(420) < 200, 1.0, 0.5) * frame[field, "S03"]
        frame.loc[frame.index[300:308], (field, "S04")] = frame.loc[frame.index[300], ("Close", "S04")]
    frame.loc[frame.index[410:413], ("Volume", "S05")] = 0
    frame.loc[frame.index[:120], pd.IndexSlice[:, "S06"]] = np.nan
    frame.loc[frame.index[350:], pd.IndexSlice[:, "S07"]] = np.nan
    return frame


def numbers(nested: Any) -> list[float]:
    """The leaves of nested mappings and lists, in order."""
    if isinstance(nested, float):
        return [nested]
    return [leaf for part in (nested.values() if isinstance(nested, dict) else nested) for leaf in numbers(part)]


@pytest.mark.parametrize("market", ["sample", "events"])
def test_a_frame_and_the_pipeline_say_the_same(market: str, tmp_path, monkeypatch) -> None:
    frame = load_sp500_dataset() if market == "sample" else events()
    settings = Settings(home=tmp_path / "home").ensure()
    warehouse = Warehouse.from_settings(settings)
    source = PriceSourceConfig(data_source="sample")
    if market == "events":
        monkeypatch.setattr("finjepa_pipeline.prices.contract.judge", lambda *_: ())
        read_prices(frame).rows.write_parquet(tmp_path / "prices.parquet")
        source = PriceSourceConfig(data_source="files", path=str(tmp_path / "prices.parquet"), calendar="24/7")
    ingest(warehouse, settings, source)
    derive(warehouse, UniverseConfig())
    model = reader(frozenset({"close"})) if market == "sample" else reader()
    folder = settings.checkpoints / "aaaa"
    model.save_pretrained(folder)
    with warehouse.connect() as con:
        panel = Panel.open(build_panel(con, settings))
    monkeypatch.setattr(decisions, "named_checkpoint", lambda *_: NamedCheckpoint(folder, "aaaa"))

    theirs = forecast(settings, "aaaa", None, 20)
    mine = model.forecast(frame)
    assert (theirs["date"], theirs["assets"]) == (mine.date, list(mine.assets))
    assert len(mine.assets) == (20 if market == "sample" else 7)
    own = mine.to_dict()
    for name in ("volatility", "correlation", "quantiles", "portfolio", "expected_return"):
        np.testing.assert_allclose(numbers(own[name]), numbers(theirs[name]), rtol=1e-6, atol=1e-9, err_msg=name)

    simulator, session = PortfolioSimulator(model.config.portfolio), len(panel.dates) - 1
    for planner in ("qp", "mppi"):
        decision = decide(
            NamedCheckpoint(folder, "aaaa"), panel, planner, session, cash(simulator), "trial", 20, "24/7"
        )
        found = model.decide(pl.from_pandas(frame.reset_index()) if market == "sample" else frame, planner=planner)
        chosen = dict(zip(found.assets, np.asarray(found.to_frame()["holding"]), strict=True))
        np.testing.assert_allclose(list(chosen.values()), [decision.positions[name] for name in chosen], atol=1e-6)
        assert (found.hedge, found.date) == (decision.hedge, decision.date)
        assert found.expected_volatility == pytest.approx(decision.expected_volatility, abs=1e-6)
