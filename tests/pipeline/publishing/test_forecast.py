"""`finjepa forecast`: what the champion says at a close, and nothing of what came after."""

import numpy as np
import pytest
import torch

from finjepa_model import FinJEPA
from finjepa_model.data.batches import observe
from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.publishing import decision as module
from finjepa_pipeline.publishing.decision import forecast
from tests.pipeline.backtest.handmade_panel import write_panel
from tests.pipeline.backtest.handmade_setup import config_for


@pytest.fixture
def market(home, tmp_path, monkeypatch):
    """A home whose newest checkpoint fits its panel, in which nobody is champion; and that panel."""
    returns_DA = np.random.default_rng(0).normal(0, [0.01, 0.02, 0.03], (400, 3))
    panel = write_panel(tmp_path / "panel", returns_DA)
    monkeypatch.setattr(module, "current_panel", lambda settings: panel.folder)
    torch.manual_seed(0)
    folder = home.add_checkpoint("aaaa", model=FinJEPA(config_for(3)))
    monkeypatch.setattr(module, "current_checkpoint", lambda settings: folder)
    return home, panel


def test_a_forecast_is_the_models_own_at_that_close_and_reads_nothing_later(market, tmp_path, monkeypatch):
    home, panel = market
    found = forecast(home.settings, None, str(panel.dates[350]), 20)
    assert (found["checkpoint"], found["date"], found["assets"]) == ("aaaa", str(panel.dates[350]), list(panel.assets))
    model = FinJEPA.from_pretrained(home.settings.checkpoints / "aaaa")
    own = model.forecast_risk(observe(panel, np.array([350]), np.arange(3)[None], 1, model.config))
    assert [list(row.values()) for row in found["volatility"].values()] == own.volatility_BNV[0].tolist()
    month_N = [found["volatility"][name]["21"] for name in panel.assets]
    assert month_N == sorted(month_N)
    for levels in (found["quantiles"][panel.assets[0]]["21"], found["portfolio"]["5"]):
        assert list(levels.values()) == sorted(levels.values())

    later_DA = np.random.default_rng(0).normal(0, [0.01, 0.02, 0.03], (400, 3))
    later_DA[351:] *= 5
    other = write_panel(tmp_path / "later", later_DA)
    monkeypatch.setattr(module, "current_panel", lambda settings: other.folder)
    assert forecast(home.settings, None, str(panel.dates[350]), 20) == found


def test_the_champion_forecasts_where_there_is_one_and_users_mistakes_end_in_one_line(market):
    home, panel = market
    home.add_checkpoint("cccc", model=FinJEPA(config_for(3)))
    home.add_checkpoint("bbbb")
    home.promote("bbbb")  # reads another channel than the panel has: it is unknown
    assert forecast(home.settings, None, None, 2)["checkpoint"] == "bbbb"
    assert forecast(home.settings, "cccc", None, 2)["checkpoint"] == "cccc"
    with pytest.raises(FinJEPAError, match="there are no prices on 1990-01-01"):
        forecast(home.settings, "cccc", "1990-01-01", 20)
    with pytest.raises(FinJEPAError, match="sessions of history"):
        forecast(home.settings, "cccc", str(panel.dates[5]), 20)
