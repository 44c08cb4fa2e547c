"""The objective: K steps right where the dynamics are known, SIGReg by the numbers of references, actions read from holdings."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from finjepa_model import FinJEPA
from finjepa_model.config import ModelConfig, PortfolioConfig
from finjepa_model.nn.encoder import PortfolioEncoder
from finjepa_model.nn.losses import (
    InverseDynamics,
    SIGReg,
    _latent_error,
    _portfolio_terms,
    _roll_out,
    variance_covariance,
)
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.training.behaviour import random_action
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


@pytest.mark.parametrize(("shape", "slices", "expected"), [((512, 64), 1024, 1.18407), ((64, 16), 256, 1.36920)])
def test_agrees_with_lejepa_up_to_the_number_of_samples(shape, slices, expected):
    torch.manual_seed(0)
    samples = torch.randn(shape)
    assert float(SIGReg(slices)(samples, 0)) * shape[0] == pytest.approx(expected, abs=2e-4)


def test_order_of_samples_does_not_matter_and_time_indices_are_tested_apart():
    torch.manual_seed(0)
    samples, sigreg = torch.randn(3, 40, 8), SIGReg(32)
    torch.testing.assert_close(sigreg(samples[:, torch.randperm(40)], 1), sigreg(samples, 1))
    apart = torch.stack([sigreg(samples[s], 1) for s in range(3)]).mean()
    torch.testing.assert_close(sigreg(samples, 1), apart)


def test_variance_and_covariance_of_the_reference_of_zeros_and_of_equal_columns():
    torch.manual_seed(0)
    variance, covariance = variance_covariance(torch.randn(64, 16))
    assert float(variance) == pytest.approx(0.0357607, abs=1e-6)
    assert float(covariance) == pytest.approx(0.0207945, abs=1e-6)
    variance, covariance = variance_covariance(torch.zeros(32, 4))
    assert float(variance) == pytest.approx(0.99)
    assert float(covariance) == 0
    column = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    _, covariance = variance_covariance(column.expand(500, 4) / column.std())
    assert float(covariance) == pytest.approx(1, abs=1e-5)


def _traded(n, assets, sessions, seed):
    """Two states of random portfolios on random prices, the action between them, and the returns before and after it."""
    torch.manual_seed(seed)
    simulator, action, states = PortfolioSimulator(PortfolioConfig()), None, []
    present, beta = torch.ones(n, assets, dtype=torch.bool), torch.ones(n, assets)
    returns = 0.01 * torch.randn(2, n, sessions, assets)
    state = simulator.start((n, assets), dtype=torch.float32)
    for step in returns:
        action = random_action(present, action, simulator.config)
        tradable = torch.ones_like(step, dtype=torch.bool)
        state, _ = simulator.step(state, action, step, step.mean(-1), beta, tradable)
        states.append((state.holdings_XN, state.scalars(beta, torch.zeros(n))))
    assert action is not None
    return states, action, returns


def test_actions_are_read_from_holdings_and_not_from_prices():
    """By inverse dynamics on portfolio latents after the real mechanics: drift, costs, a trade at the next close."""
    n, assets, sessions, dim, batch = 6144, 3, 5, 32, 256
    states, action, returns = _traded(n, assets, sessions, seed=0)
    held = action.weights_XN * action.signals_XN
    latents, present = torch.nn.functional.layer_norm(torch.randn(assets, dim), (dim,)), torch.ones(1, assets).bool()
    encoder = PortfolioEncoder(ModelConfig(dim=dim))
    prices = [torch.nn.functional.pad(100 * part.flatten(1), (0, dim - sessions * assets)) for part in returns]

    def holdings(rows):
        return [encoder(held[rows], scalars[rows], encoder.carriers(latents, present)) for held, scalars in states]

    def known(see):
        torch.manual_seed(1)
        steps, module, seen, rest = 300, InverseDynamics(dim), 4096, slice(4096, None)
        optimizer = torch.optim.Adam(module.parameters(), 5e-3)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
            rows = torch.randint(0, seen, (batch,))
            taken = action.map(lambda x, rows=rows: x[rows])
            before, after = see(rows)
            loss = module.loss(before, after, latents.expand(batch, -1, -1), taken, present.expand(batch, -1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        invested = held[rest].sum(-1) > 0.1  # a hedge of next to nothing leaves no trace
        with torch.no_grad():
            before, after = see(rest)
            weights, signals, hedge = module(before, after, latents.expand(n - seen, -1, -1))
        told = {
            "weights": (weights.softmax(-1)[invested], (held / held.sum(-1, keepdim=True))[rest][invested]),
            "signals": (signals.softmax(-1)[..., 2], action.signals_XN[rest]),
            "hedge": (hedge.sigmoid()[invested], action.hedge_X[rest][invested]),
        }
        return {k: 1 - float((a - b).square().sum() / (b - b.mean()).square().sum()) for k, (a, b) in told.items()}

    read = known(holdings)
    assert min(read["weights"], read["hedge"]) > 0.99, read
    assert read["signals"] > 0.7, read  # a long budget of next to nothing is as good as a flat one
    assert max((read := known(lambda rows: [part[rows] for part in prices])).values()) < 0.02, read


def test_the_statistic_and_its_gradient_are_those_of_the_definition():
    torch.manual_seed(0)
    samples, sigreg = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True), SIGReg(4)
    t = torch.linspace(0, 3, 17, dtype=torch.float64)
    angle = samples.unsqueeze(-1) * t
    error = (angle.cos().mean(-3) - (-t.square() / 2).exp()).square() + angle.sin().mean(-3).square()
    expected = 2 * torch.trapezoid(error * (-t.square() / 2).exp(), t)
    torch.testing.assert_close(sigreg.statistic(samples), expected)
    torch.testing.assert_close(
        torch.autograd.grad(sigreg.statistic(samples).sum(), samples), torch.autograd.grad(expected.sum(), samples)
    )


@pytest.mark.parametrize("term", [lambda x: SIGReg(64)(x, 0), lambda x: sum(variance_covariance(x))])
def test_statistics_are_taken_in_float32_under_autocast(term):
    torch.manual_seed(0)
    samples = torch.randn(64, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = term(samples)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, term(samples))
