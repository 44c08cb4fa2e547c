"""The read-out of expected returns finds what is there, expects nothing where nothing is, and looks at training dates only."""

import numpy as np
import pytest
import torch

from finjepa_model import FinJEPA
from finjepa_model.data.splits import split_dates
from finjepa_model.nn.readout import ReturnReadout
from finjepa_model.training import readout_fit
from finjepa_model.training.readout_fit import RowSums, _less_date_mean, choose, fit_design, fit_readout, training_sums
from tests.model.markets import random_observation, small_config
from tests.model.training_runs import run_config
from tests.pipeline.backtest.handmade_panel import write_panel

CHANNELS, LATENTS, DATES, ASSETS = 4, 6, 600, 12


def _moments(date_R: np.ndarray, inputs_RZ: np.ndarray, target_R: np.ndarray, stride: int = 1) -> RowSums:
    sums = RowSums()
    sums.add(date_R // stride, _less_date_mean(inputs_RZ, date_R), inputs_RZ, _less_date_mean(target_R, date_R))
    return sums


def _designs(seed: int, strength: float, column: int = 1) -> dict[str, RowSums]:
    """Labels that one of the inputs explains with the given information coefficient."""
    random = np.random.default_rng(seed)
    inputs_RZ = random.standard_normal((DATES * ASSETS, CHANNELS + LATENTS))
    noise_R = random.standard_normal(DATES * ASSETS) * (1 - strength**2) ** 0.5
    date_R, target_R = np.repeat(np.arange(DATES), ASSETS), strength * inputs_RZ[:, column] + noise_R
    parts = {"channels": inputs_RZ[:, :CHANNELS], "latents": inputs_RZ[:, CHANNELS:]}
    return {name: _moments(date_R, part_RZ, target_R) for name, part_RZ in parts.items()}


@pytest.mark.parametrize(("column", "inputs"), [(1, "channels"), (CHANNELS + 2, "latents")])
def test_it_finds_an_input_that_explains_a_tenth(column: int, inputs: str):
    name, fitted, left = choose(_designs(0, 0.1, column))
    assert name == inputs
    weights_Z, here = left * fitted.slope * fitted.weights_Z, column % CHANNELS
    assert weights_Z[here] == pytest.approx(0.1, abs=0.05)
    assert weights_Z[here] > 3 * np.abs(np.delete(weights_Z, here)).max()


def test_where_nothing_is_it_expects_nothing_most_of_the_time():
    """And what it expects then is little: the positive part of James and Stein."""
    found = [choose(_designs(seed, 0.0)) for seed in range(40)]
    sizes = [np.linalg.norm(left * fitted.slope * fitted.weights_Z) for _, fitted, left in found]
    assert np.mean(np.array(sizes) == 0) >= 0.75
    assert np.mean(sizes) < 0.01


def test_labels_that_overlap_do_not_add_confidence():
    """The same noise, added up over ten dates for each label, would count ten times."""
    random = np.random.default_rng(1)
    sure = []
    for _ in range(20):
        signal_DA = np.cumsum(random.standard_normal((DATES, ASSETS)), axis=0) / 10
        noise_DA = random.standard_normal((DATES + 10, ASSETS))
        label_DA = np.stack([noise_DA[d : d + 10].sum(0) for d in range(DATES)]) / 10**0.5
        date_R = np.repeat(np.arange(DATES), ASSETS)
        sure.append(fit_design(_moments(date_R, signal_DA.reshape(-1, 1), label_DA.ravel(), stride=10)).t_value)
    assert np.mean(np.array(sure) > 2) <= 0.25


def test_sums_by_block_are_those_of_the_rows(tmp_path, monkeypatch):
    """Whatever the sizes of the parts that are read, and encoded sessions are a part of those that are read."""
    random = np.random.default_rng(0)
    returns_DA, signal_DAF = 0.01 * random.standard_normal((400, 7)), random.standard_normal((400, 7, 3))
    panel = write_panel(tmp_path / "panel", returns_DA, features_DAF=signal_DAF)
    torch.manual_seed(0)
    model = FinJEPA(run_config())
    whole, level, rows = training_sums(model, panel)
    monkeypatch.setattr(readout_fit, "_WINDOWS_AT_ONCE", 20)
    monkeypatch.setattr(readout_fit, "_MOST_ENCODED", rows // 3)
    parts, same_level, same_rows = training_sums(model, panel)
    assert (same_level, same_rows) == (pytest.approx(level), rows)
    for part, of_whole in zip(parts["channels"].stacked(), whole["channels"].stacked(), strict=True):
        np.testing.assert_allclose(part, of_whole, rtol=1e-5, atol=1e-4)
    assert parts["latents"].stacked()[-1].sum() == pytest.approx(rows / 3, rel=0.1)


def test_it_looks_at_no_return_after_the_training_block(tmp_path):
    random = np.random.default_rng(0)
    returns_DA = 0.01 * random.standard_normal((400, 5))
    signal_DAF = random.standard_normal((400, 5, 3))
    returns_DA[2:] += 0.01 * signal_DAF[:-2, :, 0]
    config = run_config()
    future_DA = returns_DA.copy()
    future_DA[split_dates(400, config).train[1] :] *= -3
    fitted = []
    for name, market_DA in (("one", returns_DA), ("other", future_DA)):
        torch.manual_seed(0)
        model = FinJEPA(config)
        report = fit_readout(model, write_panel(tmp_path / name, market_DA, features_DAF=signal_DAF))
        assert report["t_value"] > 2
        fitted.append({name: x.clone() for name, x in model.readout.state_dict().items()})
    assert fitted[0]["weights_Z"].any()
    assert all(torch.equal(fitted[0][name], fitted[1][name]) for name in fitted[0])


def test_a_market_of_two_assets_has_no_cross_section(tmp_path):
    returns_DA = 0.01 * np.random.default_rng(0).standard_normal((400, 2))
    model = FinJEPA(run_config(n_assets=2))
    panel = write_panel(tmp_path / "panel", returns_DA, features_DAF=np.stack([returns_DA] * 3, -1))
    assert fit_readout(model, panel) == {"rows": 0.0}
    assert not model.readout.weights_Z.any()


def test_expectations_fade_and_are_relative_to_the_others():
    torch.manual_seed(0)
    model = FinJEPA(small_config()).eval()
    model.readout.set(torch.randn_like(model.readout.weights_Z) / 10, 0.05, 0.5)
    observation = random_observation(model.config, dates=2, steps=3, assets=4)
    imagined = model.imagine(observation, 3)
    score_BHN = imagined.mean_BHN / (0.01 * model.config.model.stride**0.5) - 0.05
    torch.testing.assert_close(score_BHN[:, 1], score_BHN[:, 0] / 2)  # it fades by its persistence
    torch.testing.assert_close(score_BHN.sum(-1), torch.zeros(2, 3), atol=1e-5, rtol=0)  # relative to the others


def test_the_market_gives_every_asset_the_same_and_a_score_counts_in_its_own_volatility():
    readout = ReturnReadout(1, 1)
    readout.set(torch.tensor([0.1, 0.0]), 0.05, 1.0)
    volatility_BN = torch.tensor([[0.01, 0.03]])
    inputs_BNZ = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    present_BN = torch.ones(1, 2, dtype=torch.bool)
    mean_BHN = readout(inputs_BNZ, volatility_BN, present_BN, 1)
    torch.testing.assert_close(mean_BHN, 0.05 * 0.02 + torch.tensor([[[0.1 * 0.01, -0.1 * 0.03]]]))
