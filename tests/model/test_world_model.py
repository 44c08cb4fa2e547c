"""The objective falls, the latents do not collapse, teachers follow, checkpoints keep every bit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from finjepa_model.diagnostics import effective_rank, monitor
from finjepa_model.errors import FinJEPAError
from finjepa_model.world_model import FinJEPA
from tests.model.markets import random_batch, small_config


@pytest.mark.parametrize("recipe", ["ema", "sigreg", "both"])
def test_loss_goes_down_and_latents_do_not_collapse(recipe):
    config = small_config(recipe=recipe)
    torch.manual_seed(0)
    model = FinJEPA(config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    losses = []
    for step in range(80):
        batch, path = random_batch(config, dates=32, seed=step)
        terms = model.loss(batch, path, seed=step)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        model.update_teacher(0.99)
        losses.append(float(terms["loss"].detach()))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    model.eval()
    seen = monitor(model, *random_batch(config, dates=64, seed=9))
    assert not seen["collapsed"]
    assert seen["effective_rank_assets"] > 4


def test_the_market_learns_nothing_from_the_portfolio():
    config = small_config()
    model = FinJEPA(config)
    batch, path = random_batch(config)
    terms = model.loss(batch, path, seed=0)
    terms["inverse_dynamics"].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.encoder.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.portfolio_encoder.parameters())


def test_teacher_is_the_moving_average_of_the_student():
    model = FinJEPA(small_config())
    student, teacher = next(model.encoder.parameters()), next(model.target_encoder.parameters())
    with torch.no_grad():
        student += 1
    gap = (student - teacher).detach().clone()
    for _ in range(5):
        model.update_teacher(0.9)
    torch.testing.assert_close((student - teacher).detach(), gap * 0.9**5)
    model.update_teacher(0.0)
    assert torch.equal(student, teacher)
    assert not any(p.requires_grad for p in model.target_encoder.parameters())


def test_sigreg_recipe_has_no_teacher():
    assert not hasattr(FinJEPA(small_config(recipe="sigreg")), "target_encoder")


def test_effective_rank_of_known_spectra():
    torch.manual_seed(0)
    assert float(effective_rank(torch.randn(2000, 8))) == pytest.approx(8, abs=0.05)
    assert float(effective_rank(torch.randn(500, 1) @ torch.randn(1, 8))) == pytest.approx(1, abs=1e-4)


def test_the_monitor_knows_a_collapse_when_it_sees_one():
    config = small_config()
    model = FinJEPA(config).eval()
    with torch.no_grad():
        model.encoder.pool.weight.zero_()
        model.encoder.market_pool.weight.zero_()
    assert monitor(model, *random_batch(config, dates=64))["collapsed"]


def test_checkpoint_round_trip_is_exact(tmp_path):
    torch.manual_seed(3)
    model = FinJEPA(small_config())
    model.save_pretrained(tmp_path)
    again = FinJEPA.from_pretrained(tmp_path)
    assert again.config == model.config
    assert not again.training
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_damaged_checkpoints_are_refused_in_one_line(tmp_path):
    def refused():
        with pytest.raises(FinJEPAError) as error:
            FinJEPA.from_pretrained(tmp_path)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "config.json is missing" in refused()
    FinJEPA(small_config()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"colour": "red"}))
    assert "colour" in refused()
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    name = next(iter(weights))
    save_file({k: v for k, v in weights.items() if k != name}, tmp_path / "model.safetensors")
    assert name in refused()
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:100])
    assert "cannot be read" in refused()
    with pytest.raises(FinJEPAError, match="no checkpoint folder"):
        FinJEPA.from_pretrained(tmp_path / "elsewhere")
