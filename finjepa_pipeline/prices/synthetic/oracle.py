"""The best that can be known: myopic mean-variance decisions from the true moments, without costs, and the score of a
policy as a fraction of what they gain.

Utility of weights w for the next session: w'mu - gamma/2 w'Sigma w. Cost-free oracles must never be compared with net
results.

Shape suffixes: T sessions, A assets.
"""

import numpy as np
import torch

from finjepa_model.planning.plan import project_to_simplex

STEPS = 400


def utility(weights_TA: np.ndarray, mean_TA: np.ndarray, covariance_TAA: np.ndarray, aversion: float) -> np.ndarray:
    """Expected utility a day of each session's weights, [T]."""
    risk_T = np.einsum("ta,tab,tb->t", weights_TA, covariance_TAA, weights_TA, optimize=True)
    return (weights_TA * mean_TA).sum(axis=1) - aversion / 2.0 * risk_T


def share_of_gain(mine: float, base: float, best: float) -> float:
    """(mine - base) / (best - base): the part of what could be gained over a base, mostly 1/N, that was gained. 1 is the
    best, 0 the base, and less than 0 is worse than the base; nan where there is nothing to gain."""
    return (mine - base) / (best - base) if best > base else float("nan")


def fraction_of_oracle(
    weights_TA: np.ndarray, oracle_TA: np.ndarray, mean_TA: np.ndarray, covariance_TAA: np.ndarray, aversion: float
) -> float:
    """The share of the oracle's gain over 1/N, on expected utility without costs. All assets are there on all sessions; for
    a backtest on the market's panel, where they come and go, see `finjepa_pipeline.backtest.known_truth.fraction`."""
    equal_TA = np.full_like(weights_TA, 1.0 / weights_TA.shape[1])
    policy, oracle, equal = (
        float(utility(w_TA, mean_TA, covariance_TAA, aversion).mean()) for w_TA in (weights_TA, oracle_TA, equal_TA)
    )
    return share_of_gain(policy, equal, oracle)


def simplex(mean_TA: np.ndarray, covariance_TAA: np.ndarray, aversion: float) -> np.ndarray:
    """Best long-only weights that sum to 1, all sessions at once, by accelerated projected gradients (Beck and Teboulle 2009)."""
    step_T1 = 1.0 / (aversion * np.linalg.norm(covariance_TAA, axis=(1, 2)))[:, None]
    weights_TA = np.full_like(mean_TA, 1.0 / mean_TA.shape[1])
    ahead_TA, momentum = weights_TA, 1.0
    for _ in range(STEPS):
        gradient_TA = mean_TA - aversion * (covariance_TAA @ ahead_TA[..., None])[..., 0]
        moved_TA = torch.from_numpy(ahead_TA + step_T1 * gradient_TA)
        new_TA = project_to_simplex(moved_TA, torch.tensor(True)).numpy()
        following = (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
        ahead_TA = new_TA + (momentum - 1.0) / following * (new_TA - weights_TA)
        weights_TA, momentum = new_TA, following
    return weights_TA
