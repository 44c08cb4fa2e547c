"""The K-step objective: right where the dynamics are known, and no gradient goes from one step into the one before."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from finjepa_model import FinJEPA
from finjepa_model.nn.losses import _latent_error, _portfolio_terms, _roll_out
from tests.model.markets import random_batch, random_observation, small_config


class LinearMarket(nn.Module):
    """z' = A z, of every token on its own: what the market stream is replaced by."""

    def __init__(self, dim: int):
        super().__init__()
        torch.manual_seed(1)
        self.transition = nn.Parameter(torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))[0])

    def market(self, tokens_XSMD, present_XN):
        return tokens_XSMD @ self.transition.T, None


def _world(steps):
    config = small_config(rollout_steps=steps)
    model = FinJEPA(config).double()
    model.predictor = LinearMarket(config.model.dim)
    return model


def _path(model, steps):
    """Tokens that follow the dynamics exactly."""
    torch.manual_seed(0)
    tokens = [torch.randn(8, 5, 16, dtype=torch.float64)]
    for _ in range(steps - 1):
        tokens.append(tokens[-1] @ model.predictor.transition.detach().T)
    return torch.stack(tokens, dim=1)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_perfect_dynamics_have_no_loss_and_a_shifted_target_has(steps):
    model = _world(steps)
    context = model.config.model.context_steps
    tokens = _path(model, context + steps)
    observation = random_observation(model.config, steps=context + steps)
    predicted, _ = model.predictor.market(tokens, observation.present_BN)
    ahead = _roll_out(model, tokens, predicted, observation)
    assert ahead.shape[1] == steps
    assert float(_latent_error(ahead, tokens[:, -steps:], observation.present_BN)) < 1e-12
    # V-JEPA 2-AC's first release compared with the step before (its pull request 25)
    assert float(_latent_error(ahead, tokens[:, -steps - 1 : -1], observation.present_BN)) > 1e-2


def test_gradients_are_those_of_single_steps():
    steps = 3
    model = _world(steps)
    context = model.config.model.context_steps
    tokens = _path(model, context + steps) + 0.1 * torch.randn(8, context + steps, 5, 16, dtype=torch.float64)
    observation = random_observation(model.config, steps=context + steps)
    transition = model.predictor.transition

    predicted, _ = model.predictor.market(tokens, observation.present_BN)
    ahead = _roll_out(model, tokens, predicted, observation)
    (gradient,) = torch.autograd.grad((ahead - tokens[:, -steps:]).square().sum(), transition)

    alone, fed = torch.zeros_like(transition), tokens[:, context - 1]
    for k in range(steps):  # each step from constants
        one = fed.detach() @ transition.T
        alone += torch.autograd.grad((one - tokens[:, context + k]).square().sum(), transition)[0]
        fed = one
    assert torch.allclose(gradient, alone)


def test_the_first_step_of_a_rollout_is_the_teacher_forced_prediction():
    torch.manual_seed(0)
    config = small_config(rollout_steps=2)
    model = FinJEPA(config).double().eval()
    tokens = torch.randn(8, 5, 5, 16, dtype=torch.float64)
    observation = random_observation(config)
    predicted, _ = model.predict(tokens, observation.present_BN)
    ahead = _roll_out(model, tokens, predicted, observation)
    torch.testing.assert_close(ahead, model.rollout(tokens[:, :3], observation.present_BN, 2))


def test_a_longer_context_reaches_further_back():
    """W is a config: the last prediction of a one-layer predictor feels the first of W steps and nothing before."""
    for width in (1, 3):
        config = small_config()
        config = replace(config, model=replace(config.model, context_steps=width, predictor_layers=1))
        torch.manual_seed(0)
        model = FinJEPA(config).double().eval()
        tokens = torch.randn(2, 5, 4, 16, dtype=torch.float64, requires_grad=True)
        predicted, _ = model.predict(tokens, torch.ones(2, 3, dtype=torch.bool))
        (gradient,) = torch.autograd.grad(predicted[:, -1].square().sum(), tokens)
        felt = gradient.abs().amax((0, 2, 3)) > 0
        assert felt.tolist() == [False] * (5 - width) + [True] * width


class LinearPortfolio(nn.Module):
    """z' = A z + B a: what the portfolio stream is replaced by; a is the embedding of the action."""

    def __init__(self, dim: int):
        super().__init__()
        torch.manual_seed(1)
        self.A = nn.Parameter(torch.linalg.qr(torch.randn(dim, dim))[0])
        self.B = nn.Parameter(torch.randn(dim, dim) / dim**0.5)

    def portfolio(self, tokens_XCLD, condition_XCLD, traded_XCLD, first_step, memory, past=None):
        return tokens_XCLD @ self.A.T + condition_XCLD @ self.B.T, past


class Fixed(nn.Module):
    """An encoder that gives the latents that it holds, as many as there are states."""

    def __init__(self, latents: torch.Tensor):
        super().__init__()
        self.latents = latents

    def carriers(self, *_):
        return None

    def forward(self, holdings_BKN, *_):
        return self.latents[:, : holdings_BKN.shape[1]]


def _held(steps, noise=0.0):
    """A model with linear portfolios, everything else that its portfolio terms need, its latents and its conditions."""
    config = small_config(rollout_steps=steps)
    model = FinJEPA(config)
    batch, path = random_batch(config)
    tokens = torch.randn(8, config.model.context_steps + steps, 5, 16)
    held, present = path.holdings_BKN[:, :-1], torch.ones(8, steps, 4, dtype=torch.bool)
    condition = model.action_embedder(path.actions, held, tokens[:, -steps - 1 : -1, :-1], present).detach()
    model.predictor = LinearPortfolio(16)
    latents = [torch.randn(8, 16)]
    for k in range(steps):
        latents.append(model.predictor.portfolio(latents[-1], condition[:, k], None, k, None)[0].detach())
    latents = torch.stack(latents, dim=1) + noise * torch.randn(8, steps + 1, 16)
    model.portfolio_encoder = Fixed(latents)
    return model, (tokens, None, batch.observation, path), latents, condition


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_portfolios_that_follow_the_actions_have_no_loss_and_a_shifted_target_has(steps):
    model, seen, latents, _ = _held(steps)
    terms = _portfolio_terms(model, *seen)
    assert float(terms["portfolio_prediction"]) < 1e-10
    assert float(terms["portfolio_rollout"]) < 1e-10
    model.portfolio_encoder = Fixed(latents.roll(1, dims=1))
    shifted = _portfolio_terms(model, *seen)
    assert min(float(shifted["portfolio_prediction"]), float(shifted["portfolio_rollout"])) > 0.1
    model.portfolio_encoder = Fixed(torch.randn_like(latents))
    apart = _portfolio_terms(model, *seen)  # one step ahead of the context, both are the same
    assert torch.isclose(apart["portfolio_prediction"], apart["portfolio_rollout"]) == (steps == 1)


def test_gradients_of_portfolios_are_those_of_single_steps():
    steps = 3
    model, seen, latents, condition = _held(steps, noise=0.3)
    learned = list(model.predictor.parameters())
    gradients = torch.autograd.grad(_portfolio_terms(model, *seen)["portfolio_rollout"], learned)
    alone, fed = [torch.zeros_like(p) for p in learned], latents[:, 0]
    for k in range(steps):
        one, _ = model.predictor.portfolio(fed.detach(), condition[:, k], None, k, None)
        loss = (one - latents[:, k + 1]).square().mean() / steps
        alone = [total + part for total, part in zip(alone, torch.autograd.grad(loss, learned), strict=True)]
        fed = one
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-6) for pair in zip(gradients, alone, strict=True))
