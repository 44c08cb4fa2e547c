"""Correlation estimators, their mix, and portfolios of least variance."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from finjepa_model.nn.covariance import (
    ESTIMATORS,
    CorrelationMix,
    estimate,
    ledoit_wolf,
    minimum_variance,
    quadratic_inverse_shrinkage,
    scaled_by_local_volatility,
)


@pytest.fixture(scope="module")
def scaled_BNR() -> Tensor:
    """Three dates, twelve assets with one factor; the last asset of the last date is absent, another one is young."""
    generator = torch.Generator().manual_seed(0)
    returns_BNR = torch.randn(3, 12, 504, generator=generator) + torch.randn(3, 1, 504, generator=generator)
    observed_BNR = torch.ones_like(returns_BNR, dtype=torch.bool)
    observed_BNR[2, 11], observed_BNR[2, 10, :300] = False, False
    return scaled_by_local_volatility(0.01 * returns_BNR, observed_BNR)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_gives_a_correlation_matrix(name: str, scaled_BNR: Tensor):
    found_BNN = estimate(scaled_BNR, (name,))[:, 0]
    torch.testing.assert_close(found_BNN.diagonal(dim1=-2, dim2=-1), torch.ones(3, 12))
    assert torch.linalg.eigvalsh(found_BNN.double()).min() > -1e-5
    assert found_BNN[2, 11, :11].abs().max() == 0  # who is absent is correlated with nothing
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        estimate(scaled_BNR[:, order], (name,))[:, 0], found_BNN[:, order][:, :, order], atol=2e-4, rtol=0
    )


def test_scaled_returns_forget_the_level_of_volatility_and_see_no_later_session():
    returns_BNR = 0.01 * torch.randn(1, 2, 300, generator=torch.Generator().manual_seed(0))
    observed_BNR = torch.ones_like(returns_BNR, dtype=torch.bool)
    scaled_BNR = scaled_by_local_volatility(returns_BNR, observed_BNR)
    torch.testing.assert_close(scaled_by_local_volatility(3 * returns_BNR, observed_BNR), scaled_BNR)
    later = returns_BNR.clone()
    later[..., 200:] *= 5
    torch.testing.assert_close(scaled_by_local_volatility(later, observed_BNR)[..., :200], scaled_BNR[..., :200])


def test_the_mix_is_convex_and_positive_definite(scaled_BNR: Tensor):
    mix = CorrelationMix()
    with torch.no_grad():
        mix.logits_K.normal_(0, 3, generator=torch.Generator().manual_seed(0))
    weights_K = mix.weights_K.detach()
    assert float(weights_K.min()) >= 0
    assert float(weights_K.sum()) == pytest.approx(1)
    assert torch.linalg.eigvalsh(mix(estimate(scaled_BNR)).double()).min() > 1e-3


def test_linear_shrinkage_is_that_of_scikit_learn():
    x_TN = np.random.default_rng(0).standard_normal((60, 30)) @ np.diag(np.linspace(0.5, 2, 30))
    ours = ledoit_wolf(torch.from_numpy(x_TN)).numpy()
    np.testing.assert_allclose(ours, LedoitWolf(assume_centered=True).fit(x_TN).covariance_, atol=1e-12)


@pytest.mark.parametrize("sessions", [60, 200])
def test_nonlinear_shrinkage_comes_near_the_oracle(sessions: int):
    """In the variance of the portfolio of least variance: of estimators that keep the eigenvectors of the sample none beats the
    oracle, which knows the true variances along them. The spectrum is that of Ledoit and Wolf (1, 3, 10)."""
    true_N = torch.tensor([1.0] * 20 + [3.0] * 40 + [10.0] * 40, dtype=torch.float64)
    generator, variance = torch.Generator().manual_seed(0), {"linear": 0.0, "nonlinear": 0.0, "oracle": 0.0}
    for _ in range(20):
        x_TN = torch.randn(sessions, 100, generator=generator, dtype=torch.float64) * true_N.sqrt()
        vectors_NN = torch.linalg.eigh(x_TN.T @ x_TN)[1]
        oracle_NN = vectors_NN @ torch.diag((vectors_NN.square() * true_N[:, None]).sum(0)) @ vectors_NN.T
        nonlinear_NN = quadratic_inverse_shrinkage(x_TN)
        assert float(nonlinear_NN.trace()) == pytest.approx(float(x_TN.square().sum() / sessions))
        for name, found in (("linear", ledoit_wolf(x_TN)), ("nonlinear", nonlinear_NN), ("oracle", oracle_NN)):
            variance[name] += float((minimum_variance(found[None])[0].square() * true_N).sum())
    assert variance["oracle"] < variance["nonlinear"] < variance["linear"]


@pytest.mark.parametrize("long_only", [False, True])
def test_least_variance_is_least_and_differentiable(long_only: bool):
    generator = torch.Generator().manual_seed(0)
    factor_BNK = torch.randn(4, 9, 12, generator=generator, dtype=torch.float64) + 1
    covariance_BNN = factor_BNK @ factor_BNK.mT / 12
    weights_BN = minimum_variance(covariance_BNN, long_only)
    torch.testing.assert_close(weights_BN.sum(-1), torch.ones(4, dtype=torch.float64))
    marginal_BN = (covariance_BNN @ weights_BN.unsqueeze(-1)).squeeze(-1)
    variance_B1 = (marginal_BN * weights_BN).sum(-1, keepdim=True)
    held_BN = weights_BN > 0 if long_only else torch.ones_like(weights_BN, dtype=torch.bool)
    assert bool((~held_BN).any()) == long_only
    torch.testing.assert_close(marginal_BN[held_BN], variance_B1.expand_as(marginal_BN)[held_BN])
    assert (marginal_BN >= variance_B1 * (1 - 1e-9)).all()  # the optimality conditions of who is not held

    def realised(covariance_NN: Tensor) -> Tensor:
        weights_N = minimum_variance(covariance_NN[None], long_only)[0]
        return (weights_N * torch.arange(9, dtype=torch.float64)).sum()

    at = covariance_BNN[0].clone().requires_grad_()
    (slope_NN,) = torch.autograd.grad(realised(at), at)
    bump_NN = 1e-6 * torch.eye(9, dtype=torch.float64)[2] * torch.eye(9, dtype=torch.float64)[2][:, None]
    change = realised(covariance_BNN[0] + bump_NN) - realised(covariance_BNN[0] - bump_NN)
    assert float(change) / 2e-6 == pytest.approx(float(slope_NN[2, 2]), rel=1e-3, abs=1e-9)


def test_a_thousand_assets():
    x_BNR = torch.randn(1, 1000, 504, generator=torch.Generator().manual_seed(0))
    mixed_BNN = CorrelationMix()(estimate(scaled_by_local_volatility(x_BNR, torch.ones_like(x_BNR, dtype=torch.bool))))
    assert torch.linalg.cholesky_ex(mixed_BNN)[1].item() == 0
