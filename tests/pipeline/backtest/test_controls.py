"""Controls stand beside every planner, and replace one part each."""

import numpy as np
import pytest
import torch
from handmade_panel import write_panel
from handmade_setup import config_for, setup_over_test_block, write_lineage

from finjepa_model import FinJEPA
from finjepa_model.planner_strategies import FinJEPAStrategy, MarketImagination
from finjepa_pipeline.backtest.blocks import StrategiesConfig
from finjepa_pipeline.backtest.controls import Controls, one_factor, shrunk_sample
from finjepa_pipeline.backtest.engine import simulate
from tests.model.test_risk import market

DAYS, ASSETS = 900, 6


def test_every_planner_has_its_controls_and_one_that_looks_at_latents_only_those_with_a_model():
    config = StrategiesConfig(planner="qp,cem", controls="untrained,ewma,ledoit_wolf,shuffled_actions")
    tested = [name for name in config.tested("test") if " with " in name]
    of_qp = [f"qp with {control}" for control in ("untrained", "ewma", "ledoit_wolf", "shuffled_actions")]
    assert tested == [*of_qp, "cem with untrained", "cem with shuffled_actions"]
    assert not any(" with " in name for name in config.tested("validation"))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder, config = tmp_path_factory.mktemp("controls"), config_for(ASSETS)
    panel = write_panel(folder / "panel", 2 * market()[0][:DAYS, :ASSETS])
    torch.manual_seed(0)
    model = FinJEPA(config)
    model.readout.level.fill_(0.5)  # invested
    model.save_pretrained(folder / "model")
    write_lineage(folder / "model", config, panel)
    return Controls(MarketImagination(folder / "model")), setup_over_test_block(panel, config, 40)


def test_a_control_keeps_the_expected_returns_and_replaces_the_risk(case):
    controls, setup = case
    view, model = setup.views()[0], controls.imagination
    own = model.at(view)
    risks = {"ewma": one_factor, "ledoit_wolf": shrunk_sample}
    for name, covariance in risks.items():
        imagined = controls.make(f"qp with {name}")._imagination.at(view)
        assert torch.equal(imagined.mean_BHN, own.mean_BHN)
        assert imagined.covariance_BHMM.shape == own.covariance_BHMM.shape
        assert torch.equal(imagined.covariance_BHMM, covariance(view, model.config.model.stride))
        ratio = imagined.covariance_BHMM.diagonal(dim1=2, dim2=3) / own.covariance_BHMM.diagonal(dim1=2, dim2=3)
        assert 0.2 < float(ratio.min()) < float(ratio.max()) < 5  # the same unit
    untrained = controls.make("qp with untrained")._imagination
    torch.testing.assert_close(untrained.at(view).mean_BHN, own.mean_BHN)  # its level is the trained one's


def test_every_control_trades_and_shuffled_actions_are_no_dearer_than_the_planner(case):
    controls, setup = case
    held, turnover = {}, {}
    for name in ("untrained", "ewma", "ledoit_wolf", "shuffled_actions"):
        result = simulate(controls.make(f"qp with {name}"), setup)
        assert result.strategy == f"qp with {name}"
        held[name], turnover[name] = result.held_KR[0], result.turnover_T.sum()
        assert np.abs(held[name]).sum() > 0.5
    assert np.abs(held["ewma"] - held["ledoit_wolf"]).sum() > 0.01
    planned = simulate(FinJEPAStrategy("qp", controls.imagination), setup)
    assert np.abs(held["shuffled_actions"] - planned.held_KR[0]).sum() > 0.01
    assert turnover["shuffled_actions"] < 1.3 * planned.turnover_T.sum()
