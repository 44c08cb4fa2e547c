"""Correlations of many assets: textbook estimators, their convex mix, and portfolios of least variance.

Every estimator gives a positive semidefinite matrix with a unit diagonal, and does not depend on the order of the assets. The
mix has a dozen weights, trained on the realised variance of minimum-variance portfolios (`finjepa_model.training.risk_fit`): for
portfolio choice that loss counts, not the distance between matrices (Bongiorno et al. 2025).

Shapes: B dates, N assets, R sessions of history, newest last, K estimators, L factors.
"""

import torch
from torch import Tensor, nn

ESTIMATORS = (
    "sample_252", "sample_504", "ewma", "one_factor", "five_factors", "constant", "identity", "linear_shrinkage",
    "nonlinear_shrinkage",
)  # fmt: skip
LEARNED = "learned_factors"
_LOCAL_DECAY, _EWMA_DECAY = 0.94, 0.99  # RiskMetrics 1996 for volatility; correlations change more slowly
# Share of the identity in every correlation that is handed out: positive definite whatever the weights.
_LEAST_DIAGONAL = 0.01


def scaled_by_local_volatility(returns_BNR: Tensor, observed_BNR: Tensor) -> Tensor:
    """Returns in units of their exponentially weighted volatility, the day's included; 0 where not observed."""
    age_RR = torch.arange(returns_BNR.shape[-1], device=returns_BNR.device)
    age_RR = age_RR[:, None] - age_RR[None, :]
    weight_RR = torch.where(age_RR >= 0, _LOCAL_DECAY ** age_RR.clamp(min=0).to(returns_BNR.dtype), 0.0)
    known_BNR = observed_BNR.to(returns_BNR.dtype)
    square_BNR = (returns_BNR.square() * known_BNR) @ weight_RR.T
    variance_BNR = square_BNR / (known_BNR @ weight_RR.T).clamp(min=1e-6)
    return torch.where(observed_BNR, returns_BNR / variance_BNR.clamp(min=1e-10).sqrt(), 0.0)


def estimate(scaled_BNR: Tensor, names: tuple[str, ...] = ESTIMATORS) -> Tensor:
    """Correlations_BKNN by the named textbook estimators.

    Args:
        scaled_BNR: zero-mean returns of like scale; 0 where not observed, which pulls an asset with a short history towards no
            correlation; an absent asset has zeros throughout and is correlated with nothing.
    """
    year_BNR = scaled_BNR[..., -252:]
    sample_BNN, long_BNN = _correlation(year_BNR), _correlation(scaled_BNR)
    present_BN = scaled_BNR.abs().amax(-1) > 0
    found: dict[str, Tensor] = {"sample_252": sample_BNN, "sample_504": long_BNN}
    if "ewma" in names:
        age_R = torch.arange(scaled_BNR.shape[-1] - 1, -1, -1, device=scaled_BNR.device)
        found["ewma"] = _correlation(scaled_BNR * _EWMA_DECAY ** (age_R / 2))
    if "one_factor" in names:
        index_B1R = scaled_BNR.mean(-2, keepdim=True)
        length_BN = (scaled_BNR.norm(dim=-1) * index_B1R.norm(dim=-1)).clamp(min=1e-12)
        loading_BN = (scaled_BNR * index_B1R).sum(-1) / length_BN
        found["one_factor"] = with_diagonal(loading_BN.unsqueeze(-1) * loading_BN.unsqueeze(-2))
    if "five_factors" in names:
        # without its diagonal, or an absent asset would be a factor of its own
        there_BNN = torch.where(present_BN.unsqueeze(-1), long_BNN, 0.0)
        value_BN, vector_BNN = torch.linalg.eigh(there_BNN)
        top_BNL = vector_BNN[..., -5:] * value_BN[..., -5:].clamp(min=0).sqrt().unsqueeze(-2)
        found["five_factors"] = with_diagonal(top_BNL @ top_BNL.mT)
    pair_BNN = present_BN.unsqueeze(-1) & present_BN.unsqueeze(-2)
    pair_BNN = pair_BNN & ~torch.eye(pair_BNN.shape[-1], dtype=torch.bool, device=pair_BNN.device)
    if "constant" in names:
        mean_B11 = (long_BNN * pair_BNN).sum((-1, -2), keepdim=True) / pair_BNN.sum((-1, -2), keepdim=True).clamp(min=1)
        found["constant"] = with_diagonal(torch.where(pair_BNN, mean_B11.clamp(min=0), 0.0))
    found["identity"] = with_diagonal(torch.zeros_like(long_BNN))
    for name, shrink in (("linear_shrinkage", ledoit_wolf), ("nonlinear_shrinkage", quadratic_inverse_shrinkage)):
        if name in names:
            shrunk = torch.zeros_like(long_BNN)
            for b, present_N in enumerate(present_BN):
                at = present_N.nonzero().squeeze(-1)
                if len(at):
                    shrunk[b, at[:, None], at] = shrink(_unit_rows(scaled_BNR[b, at]).T)
            found[name] = with_diagonal(_rescaled(shrunk))
    return torch.stack([found[name] for name in names], dim=1)


class CorrelationMix(nn.Module):
    """A convex combination of correlation matrices: again one, positive definite."""

    def __init__(self, names: tuple[str, ...] = ESTIMATORS):
        super().__init__()
        self.names = names
        self.logits_K = nn.Parameter(torch.zeros(len(names)))

    @property
    def weights_K(self) -> Tensor:
        return self.logits_K.softmax(0)

    def forward(self, correlations_BKNN: Tensor) -> Tensor:
        """correlation_BNN."""
        mixed_BNN = torch.einsum("k,bknm->bnm", self.weights_K.to(correlations_BKNN.dtype), correlations_BKNN)
        eye_NN = torch.eye(mixed_BNN.shape[-1], dtype=mixed_BNN.dtype, device=mixed_BNN.device)
        return (1 - _LEAST_DIAGONAL) * mixed_BNN + _LEAST_DIAGONAL * eye_NN


def ledoit_wolf(x_TN: Tensor) -> Tensor:
    """Covariance_NN, shrunk linearly to a multiple of the identity (Ledoit and Wolf 2004); rows of mean zero."""
    sessions, assets = x_TN.shape
    sample_NN = x_TN.T @ x_TN / sessions
    level = sample_NN.diagonal().mean()
    distance = sample_NN.square().sum() - assets * level.square()  # to the target, squared
    noise = (x_TN.square().sum(1).square().sum() / sessions - sample_NN.square().sum()) / sessions
    share = (noise / distance.clamp(min=1e-30)).clamp(0, 1)
    return (1 - share) * sample_NN + share * level * torch.eye(assets, dtype=x_TN.dtype, device=x_TN.device)


def quadratic_inverse_shrinkage(x_TN: Tensor) -> Tensor:
    """Covariance_NN by the non-linear shrinkage of Ledoit and Wolf (2022), Quadratic shrinkage for large covariance matrices,
    section 4; rows of mean zero."""
    sessions, assets = x_TN.shape
    ratio = assets / sessions
    value_N, vector_NN = torch.linalg.eigh((x_TN.T @ x_TN / sessions).double())
    value_N = value_N.clamp(min=1e-12)
    positive = min(assets, sessions)
    inverse_P = 1 / value_N[assets - positive :]
    bandwidth = min(ratio**2, ratio**-2) ** 0.35 / assets**0.35
    # smoothed Stein shrinker and its conjugate: sums over eigenvalues j, for each eigenvalue i
    gap_PP = inverse_P[:, None] - inverse_P[None, :]
    smooth_PP = inverse_P[:, None] / (gap_PP.square() + bandwidth**2 * inverse_P[:, None].square())
    theta_P, conjugate_P = (smooth_PP * gap_PP).mean(0), (smooth_PP * bandwidth * inverse_P[:, None]).mean(0)
    squared_P = theta_P.square() + conjugate_P.square()
    if assets <= sessions:
        inverse_delta_N = (1 - ratio) ** 2 * inverse_P + 2 * ratio * (1 - ratio) * inverse_P * theta_P
        delta_N = 1 / (inverse_delta_N + ratio**2 * inverse_P * squared_P)
    else:
        null = 1 / ((ratio - 1) * inverse_P.mean())
        delta_N = torch.cat([null.expand(assets - sessions), 1 / (inverse_P * squared_P)])
    delta_N = delta_N * (value_N.sum() / delta_N.sum())
    return ((vector_NN * delta_N) @ vector_NN.T).to(x_TN.dtype)


def minimum_variance(covariance_BNN: Tensor, long_only: bool = False, rounds: int = 40) -> Tensor:
    """Weights_BN of the portfolio of least variance whose weights add up to 1.

    Long only: an active set, from which assets with a negative weight leave and to which those return whose marginal variance is
    below the portfolio's; at most `rounds` times. Gradients
    flow through the solution on the assets that are held, which makes them exact.
    """
    batch, assets, _ = covariance_BNN.shape
    ones_BN1 = covariance_BNN.new_ones(batch, assets, 1)
    if not long_only:
        solved_BN = torch.linalg.solve(covariance_BNN, ones_BN1).squeeze(-1)
        return solved_BN / solved_BN.sum(-1, keepdim=True)
    held_BN = torch.ones(batch, assets, dtype=torch.bool, device=covariance_BNN.device)
    fixed_BNN = covariance_BNN.detach()
    for round_ in range(rounds):
        weights_BN = _least_on(fixed_BNN, held_BN)
        leaves_BN = held_BN & (weights_BN <= 0)
        if round_ < rounds - 1 and not leaves_BN.any():
            marginal_BN = (fixed_BNN @ weights_BN.unsqueeze(-1)).squeeze(-1)
            least_B1 = (weights_BN * marginal_BN).sum(-1, keepdim=True)
            returns_BN = ~held_BN & (marginal_BN < least_B1 * (1 - 1e-6))
            best_BN = torch.nn.functional.one_hot(
                torch.where(returns_BN, marginal_BN, torch.inf).argmin(-1), assets
            ).bool()
            if not returns_BN.any():
                break
            held_BN = held_BN | (best_BN & returns_BN)
        else:
            held_BN = held_BN & ~leaves_BN
    weights_BN = _least_on(covariance_BNN, held_BN).clamp(min=0)
    return weights_BN / weights_BN.sum(-1, keepdim=True)


def _least_on(covariance_BNN: Tensor, held_BN: Tensor) -> Tensor:
    """Unconstrained weights of least variance of the assets that are held, 0 for others."""
    held_B1N = held_BN.unsqueeze(-2).to(covariance_BNN.dtype)
    outside_BN = (1 - held_B1N.squeeze(-2)) * covariance_BNN.diagonal(dim1=-2, dim2=-1).detach()
    system_BNN = covariance_BNN * held_B1N * held_B1N.mT + torch.diag_embed(outside_BN)
    solved_BN = torch.linalg.solve(system_BNN, held_B1N.mT).squeeze(-1)
    return solved_BN / solved_BN.sum(-1, keepdim=True)


def _unit_rows(x_BNR: Tensor) -> Tensor:
    """Every asset with a mean square of 1."""
    return x_BNR / x_BNR.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-9)


def _correlation(x_BNR: Tensor) -> Tensor:
    unit_BNR = x_BNR / x_BNR.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    return with_diagonal(unit_BNR @ unit_BNR.mT)


def _rescaled(covariance_BNN: Tensor) -> Tensor:
    root_BN = covariance_BNN.diagonal(dim1=-2, dim2=-1).clamp(min=1e-12).rsqrt()
    return covariance_BNN * root_BN.unsqueeze(-1) * root_BN.unsqueeze(-2)


def with_diagonal(x_BNN: Tensor) -> Tensor:
    eye_NN = torch.eye(x_BNN.shape[-1], dtype=torch.bool, device=x_BNN.device)
    return torch.where(eye_NN, 1.0, x_BNN)
