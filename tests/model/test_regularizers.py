"""SIGReg by the numbers of reference implementations, and inverse dynamics that can read what is there."""

import pytest
import torch

from finjepa_model.actions import PortfolioAction
from finjepa_model.regularizers import InverseDynamics, SIGReg, variance_covariance


def test_full_collapse_has_its_closed_value():
    assert float(SIGReg(64)(torch.zeros(512, 8, dtype=torch.float64), 0)) == pytest.approx(0.4020476, abs=1e-6)


@pytest.mark.parametrize(("shape", "slices", "expected"), [((512, 64), 1024, 1.18407), ((64, 16), 256, 1.36920)])
def test_agrees_with_lejepa_up_to_the_number_of_samples(shape, slices, expected):
    torch.manual_seed(0)
    samples = torch.randn(shape)
    assert float(SIGReg(slices)(samples, 0)) * shape[0] == pytest.approx(expected, abs=2e-4)


def test_wrong_scale_and_low_rank_are_told_from_gaussian():
    torch.manual_seed(0)
    samples, sigreg = torch.randn(512, 64), SIGReg(1024)
    good = float(sigreg(samples, 0))
    rank_one = torch.randn(512, 1) @ torch.ones(1, 64)
    for bad in (samples * 2, samples * 0.5, rank_one):
        assert float(sigreg(bad, 0)) > 30 * good


def test_null_mean_is_known_at_any_size():
    for n, d in ((64, 4), (256, 32)):
        torch.manual_seed(n)
        statistics = torch.stack([SIGReg(64)(torch.randn(n, d), seed) * n for seed in range(60)])
        assert float(statistics.mean()) == pytest.approx(1.0525, abs=4 * float(statistics.std()) / 60**0.5)


def test_order_of_samples_does_not_matter_and_time_indices_are_tested_apart():
    torch.manual_seed(0)
    samples, sigreg = torch.randn(3, 40, 8), SIGReg(32)
    torch.testing.assert_close(sigreg(samples[:, torch.randperm(40)], 1), sigreg(samples, 1))
    apart = torch.stack([sigreg(samples[s], 1) for s in range(3)]).mean()
    torch.testing.assert_close(sigreg(samples, 1), apart)


def test_variance_covariance_of_zeros_and_of_equal_columns():
    variance, covariance = variance_covariance(torch.zeros(32, 4))
    assert float(variance) == pytest.approx(0.99)
    assert float(covariance) == 0
    column = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    _, covariance = variance_covariance(column.expand(500, 4) / column.std())
    assert float(covariance) == pytest.approx(1, abs=1e-5)


def test_inverse_dynamics_reads_actions_from_holdings_and_not_from_prices():
    torch.manual_seed(0)
    n, dim, assets = 512, 12, 3
    latents = torch.eye(assets, dim).expand(n, assets, dim)
    raw = torch.rand(n, assets)
    signals = torch.randint(0, 2, (n, assets)).float()
    action = PortfolioAction(raw / raw.sum(-1, keepdim=True), signals, torch.randint(0, 2, (n,)).float())
    shown = torch.cat([action.weights_XN * signals, signals, action.hedge_X[:, None], torch.zeros(n, 5)], -1)
    present = torch.ones(n, assets, dtype=torch.bool)

    def part(rows):
        return PortfolioAction(action.weights_XN[rows], signals[rows], action.hedge_X[rows])

    def train(before, after):
        torch.manual_seed(0)
        module, seen, rest = InverseDynamics(dim), slice(384), slice(384, None)
        optimizer = torch.optim.Adam(module.parameters(), 3e-3)
        for _ in range(250):
            loss = module.loss(before[seen], after[seen], latents[seen], part(seen), present[seen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        _, logits, hedge = module(before[rest], after[rest], latents[rest])
        told_signals = (logits.argmax(-1) - 1 == signals[rest]).float().mean()
        told_hedge = ((hedge > 0) == (action.hedge_X[rest] > 0)).float().mean()
        return [float(told_signals), float(told_hedge)]

    assert min(train(torch.zeros(n, dim), shown)) > 0.97
    assert max(train(torch.randn(n, dim), torch.randn(n, dim))) < 0.62
