"""The objective falls, the latents do not collapse, teachers follow; latents of a planted market hold its factors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from finjepa_model import FinJEPA
from finjepa_model.config import LossConfig, ModelConfig, preset
from finjepa_model.training.evaluation import effective_rank, failures, monitor
from finjepa_model.training.trainer import learning_rate, parameter_groups, teacher_momentum
from tests.model.markets import random_batch, small_config


@pytest.mark.parametrize(("recipe", "rate"), [("ema", 2e-3), ("sigreg", 1e-2)])
def test_loss_goes_down_and_latents_do_not_collapse(recipe, rate):
    """At this rate SIGReg behind a projector let latents that are their own target shrink: their spread fell to 0.001."""
    config = small_config(recipe=recipe, sigreg=1.0)
    torch.manual_seed(0)
    model, losses = FinJEPA(config), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)
    for step in range(45):
        loss = model.loss(*random_batch(config, dates=16, seed=step), seed=step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update_teacher(0.99)
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])
    seen = monitor(model.eval(), random_batch(config, dates=64, seed=999)[0])
    assert not seen["collapsed"], seen["collapse"]
    assert seen["effective_rank_assets"] > 4
    if recipe == "sigreg":
        assert min(seen["latent_std"], seen["latent_std_market"]) > 0.8
        assert seen["mean_skill"] > 0.2


def test_the_market_learns_nothing_from_the_portfolio():
    config = small_config()
    model = FinJEPA(config)
    batch, path = random_batch(config)
    terms = model.loss(batch, path, seed=0)
    terms["inverse_dynamics"].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.encoder.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.inverse_dynamics.parameters())


def test_the_teacher_is_the_moving_average_of_its_student():
    """Of every parameter, and no gradient reaches a teacher."""
    config = small_config(recipe="both")
    model = FinJEPA(config)
    student, teacher = model.encoder, model.target_encoder
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += torch.randn_like(p)
    gaps = [(s - t).detach() for s, t in zip(student.parameters(), teacher.parameters(), strict=True)]
    for _ in range(5):
        model.update_teacher(0.9)
    for s, t, gap in zip(student.parameters(), teacher.parameters(), gaps, strict=True):
        assert gap.any()
        torch.testing.assert_close((s - t).detach(), gap * 0.9**5, rtol=1e-5, atol=1e-6)
    model.update_teacher(0.0)
    for name, value in student.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], value), name
    model.loss(*random_batch(config), seed=0)["loss"].backward()
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())


@pytest.mark.parametrize("recipe", ["ema", "sigreg", "both", "vicreg"])
def test_targets_are_not_pulled_to_what_predicts_them(recipe):
    """What comes ahead is only a target, and so are masked patches. Where a target learns, latents forget the newest sessions,
    and patches go constant (docs/results/world-model.md)."""
    config = small_config(recipe=recipe, rollout_steps=1)
    torch.manual_seed(0)
    model = FinJEPA(config)
    assert hasattr(model, "target_encoder") == (recipe in ("ema", "both"))
    batch, path = random_batch(config)
    seen = replace(batch.observation, features_BSNTF=batch.observation.features_BSNTF.requires_grad_())
    ahead = replace(batch.ahead, features_BSNTF=batch.ahead.features_BSNTF.detach().clone().requires_grad_())
    terms = model.loss(replace(batch, observation=seen, ahead=ahead), path, seed=0)
    assert torch.autograd.grad(terms["loss"], ahead.features_BSNTF, retain_graph=True, allow_unused=True) == (None,)
    (of_prediction,) = torch.autograd.grad(terms["prediction"], seen.features_BSNTF, retain_graph=True)
    assert (of_prediction[:, :-1].flatten(2).abs().amax(-1) > 0).all()
    assert (of_prediction[:, -1] == 0).all()
    (of_patches,) = torch.autograd.grad(terms["masked_patch"], seen.features_BSNTF)
    touched = of_patches[:, -1].unflatten(2, (config.model.patches, -1)).flatten(3).abs().amax(-1) > 0
    visible = config.model.patches - int(config.loss.mask_ratio * config.model.patches)
    assert (touched.sum(-1) == visible).all()


def test_effective_rank_of_known_spectra():
    torch.manual_seed(0)
    assert float(effective_rank(torch.randn(2000, 8))) == pytest.approx(8, abs=0.05)
    assert float(effective_rank(torch.randn(500, 1) @ torch.randn(1, 8))) == pytest.approx(1, abs=1e-4)


def _constant(model):
    model.encoder.pool.weight.zero_()
    model.encoder.market_pool.weight.zero_()


def _one_dimension(model):
    pools = (model.encoder.pool, model.encoder.market_pool)
    for pool in pools:
        pool.weight.copy_(torch.ones(16, 1) * torch.linspace(-1, 1, 16)[:, None] @ pool.weight[:1])
        pool.bias.zero_()
    for block in model.encoder.asset_blocks:
        block.attention.out.weight.zero_()
        block.mlp[2].weight.zero_()


def _copying(model):
    model.predictor.market_out[1].weight.zero_()
    model.predictor.market_out[1].bias.zero_()


@pytest.mark.parametrize(
    ("damage", "named"),
    [(_constant, "constant latents"), (_one_dimension, "few dimensions"), (_copying, "the predictor copies")],
)
def test_the_monitors_know_a_collapse_when_they_see_one(damage, named):
    torch.manual_seed(0)
    model = FinJEPA(small_config()).eval()
    batch, _ = random_batch(small_config(), dates=64)
    assert named not in monitor(model, batch)["collapse"]
    with torch.no_grad():
        damage(model)
    seen = monitor(model, batch)
    assert seen["collapsed"]
    assert named in seen["collapse"]


def test_slow_features_and_errors_above_the_spread_are_told_by_their_bounds():
    sound = monitor(FinJEPA(small_config()).eval(), random_batch(small_config(), dates=64)[0])
    numbers = {name: value for name, value in sound.items() if isinstance(value, float)}
    assert "slow features only" in failures(numbers | {"slowness": 0.999})
    assert "the predictor copies" not in failures(numbers | {"copy_skill": 0.0})  # as good as no change, by another way
    assert "error above the spread of the target" in failures(numbers | {"relative_error": 3.0})
    assert len(failures(numbers | {"mean_skill": float("nan")})) == 5


FACTORS, STEPS = 3, 5


def _planted(config, dates, seed):
    """Ornstein-Uhlenbeck factors that move all channels of an asset, each as much as the others, and noise; and the factors at
    the windows' ends."""
    rng = np.random.default_rng(seed)
    model, assets = config.model, 3
    sessions = 2 * model.window + model.stride * (STEPS - 2)
    channels = len(model.channels)
    mixing = np.linalg.qr(np.random.default_rng(99).standard_normal((channels, FACTORS)))[0].T * channels**0.5
    factors = np.empty((dates, assets, sessions, FACTORS))
    factors[..., 0, :] = rng.standard_normal((dates, assets, FACTORS))
    for t in range(1, sessions):
        shock = rng.standard_normal((dates, assets, FACTORS))
        factors[..., t, :] = 0.97 * factors[..., t - 1, :] + np.sqrt(1 - 0.97**2) * shock
    seen = factors @ mixing + 0.7 * rng.standard_normal((dates, assets, sessions, channels))
    ends = model.window + model.stride * np.arange(STEPS)
    before, after = (
        torch.from_numpy(np.stack([seen[:, :, at - model.window : at] for at in stops], axis=1)).float()
        for stops in (ends, ends[:-1] + model.window)
    )
    batch, path = random_batch(config, dates=dates, assets=assets, seed=seed)
    observation, ahead = (
        replace(part, features_BSNTF=x) for part, x in ((batch.observation, before), (batch.ahead, after))
    )
    return replace(batch, observation=observation, ahead=ahead), path, factors[:, :, ends[-1] - 1]


def _ridge(fit, choose):
    """The strength with the least error on other dates."""
    tried = [make_pipeline(StandardScaler(), Ridge(10.0**power * len(fit[0]))).fit(*fit) for power in range(-4, 3)]
    return max(tried, key=lambda probe: probe.score(*choose))


def _factors_known(model, config):
    """R2 of each factor at the windows' ends, read by a ridge from the latents; and of one that was fitted on shuffled rows."""
    rows = []
    for seed in (1000, 1001, 1002):
        batch, _, factors = _planted(config, 256, seed)
        with torch.no_grad():
            latents, _ = model.encode(batch.observation)
        rows.append((latents[:, -1].flatten(0, 1).numpy(), factors.reshape(-1, FACTORS)))
    (inputs, targets), choose, judge = rows
    blind = np.random.default_rng(0).permutation(targets)
    probes = (_ridge((inputs, y), choose) for y in (targets, blind))
    return tuple(r2_score(judge[1], probe.predict(judge[0]), multioutput="raw_values") for probe in probes)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_latents_of_a_planted_market_hold_its_factors(seed):
    """A ridge on the raw windows reads .96 of each factor; see docs/results/world-model.md for the recipes."""
    config = replace(
        preset("tiny"),
        model=ModelConfig(
            channels=tuple("abcdefgh"), market_channels=("m",), window=16, patch=4, stride=4, dim=32, heads=2,
            time_layers=1, predictor_layers=1,
        ),
        loss=LossConfig(recipe="ema", ema_start=0.9),
    )  # fmt: skip
    torch.manual_seed(seed)
    model = FinJEPA(config)
    untrained, _ = _factors_known(model.eval(), config)
    training = replace(config.training, learning_rate=3e-3, warmup_steps=20, gradient_clip=1.0)
    optimizer, steps = torch.optim.AdamW(parameter_groups(model.train(), 0.01)), 300
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, step, steps)
        batch, path, _ = _planted(config, 64, 10_000 * (seed + 1) + step)
        optimizer.zero_grad()
        model.loss(batch, path, seed=step)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clip)
        optimizer.step()
        model.update_teacher(teacher_momentum(config.loss, step, steps))
    known, blind = _factors_known(model.eval(), config)
    assert min(known) > 0.87, known
    assert all(after > before + 0.04 for after, before in zip(known, untrained, strict=True)), (known, untrained)
    assert max(blind) < 0.05
