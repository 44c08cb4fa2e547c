"""The Bayes filter of the regime: what the returns up to a session say about it to somebody who knows the generator.

Shapes: D sessions, A assets, K factors, S regimes.
"""

import numpy as np

from finjepa_pipeline.prices.synthetic.market import CRASH, CRASHES_A_YEAR, FACTOR_VOLATILITY, STAY, SyntheticMarket


def stormy_probability(market: SyntheticMarket) -> np.ndarray:
    """Probability [D] that the regime of a session is the stormy one, given the returns up to and including it.

    It knows loadings, idiosyncratic variances, expected returns and the chance of a crash, and takes shocks for Gaussian.
    """
    change_SS = np.array([[STAY[0], 1 - STAY[0]], [1 - STAY[1], STAY[1]]])
    likelihood_DS = _log_likelihood(market)
    likelihood_DS = np.exp(likelihood_DS - likelihood_DS.max(axis=1, keepdims=True))
    belief_S, stormy_D = np.array([1.0, 0.0]), np.zeros(len(market.dates))
    for t in range(1, len(market.dates)):
        belief_S = (belief_S @ change_SS) * likelihood_DS[t]
        belief_S /= belief_S.sum()
        stormy_D[t] = belief_S[1]
    return stormy_D


def _log_likelihood(market: SyntheticMarket) -> np.ndarray:
    """Log density [D, S] of a session's returns under each regime, up to a constant; a crash happens or does not."""
    sessions, assets = market.returns_DA.shape
    seen_DA = market.alive_DA & (market.returns_DA != 0)
    loadings_DAK = market.loadings_AK * seen_DA[..., None]
    surprise_DA = np.zeros((sessions, assets))
    surprise_DA[1:] = market.returns_DA[1:] - market.expected_DA[:-1]
    surprise_DA *= seen_DA
    own_DA = np.ones((sessions, assets))
    own_DA[1:] = np.where(seen_DA[1:], market.own_variance_DA[:-1], 1.0)
    log_DS = np.empty((sessions, len(STAY)))
    chance = CRASHES_A_YEAR / 252.0
    for s, factors_K in enumerate(FACTOR_VOLATILITY):
        covariance_DAA = np.einsum("dak,k,dbk->dab", loadings_DAK, factors_K**2, loadings_DAK, optimize=True)
        covariance_DAA += own_DA[:, :, None] * np.eye(assets)
        _, determinant_D = np.linalg.slogdet(covariance_DAA)
        outcomes = []
        for probability, jump in ((1 - chance, 0.0), (chance, CRASH)):
            left_DA = surprise_DA + (jump - CRASH * chance) * loadings_DAK[..., 0]
            distance_D = (left_DA * np.linalg.solve(covariance_DAA, left_DA[..., None])[..., 0]).sum(axis=1)
            outcomes.append(np.log(probability) - 0.5 * (distance_D + determinant_D))
        log_DS[:, s] = np.logaddexp(*outcomes)
    return log_DS
