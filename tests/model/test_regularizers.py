"""SIGReg by the numbers of reference implementations, and inverse dynamics that can read what is there."""

import pytest
import torch

from finjepa_model.config import ModelConfig, PortfolioConfig
from finjepa_model.nn.encoder import PortfolioEncoder
from finjepa_model.nn.losses import InverseDynamics, SIGReg, variance_covariance
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.training.behaviour import random_action


@pytest.mark.parametrize(("n", "d"), [(512, 64), (30, 3)])
def test_full_collapse_has_its_closed_value(n, d):
    assert float(SIGReg(64)(torch.zeros(n, d, dtype=torch.float64), 0)) == pytest.approx(0.4020476, abs=5e-8)


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
