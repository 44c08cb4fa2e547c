"""Latents of a planted market hold its factors."""

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
from finjepa_model.training.trainer import learning_rate, parameter_groups, teacher_momentum
from tests.model.markets import random_batch

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
