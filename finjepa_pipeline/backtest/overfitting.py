"""What is left of a Sharpe ratio once one knows how many were tried.

Formulas: Bailey and Lopez de Prado 2012 (PSR), 2014 (DSR); Bailey, Borwein, Lopez de Prado and Zhu 2017 (PBO by CSCV).
Sharpe ratios are per session here, not annualised; kurtosis is plain (3 for a normal).

Shapes: T sessions, K strategies, N trials, S blocks, C splits into two halves.
"""

from itertools import combinations

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import kurtosis, norm, skew

from finjepa_pipeline.backtest.metrics import SHORTEST

_EULER = 0.5772156649015329
CSCV_BLOCKS = 16  # 12,870 splits
SAME_BET = 0.5  # trials that correlate more than this count as one


def probabilistic_sharpe(excess_T: np.ndarray, target: float = 0.0) -> float:
    """PSR: probability that the true Sharpe ratio is above `target` (per session). NaN where nothing moves, or there are fewer
    than `SHORTEST` sessions."""
    if len(excess_T) < SHORTEST or excess_T.std(ddof=1) <= 1e-12:
        return float("nan")
    ratio = excess_T.mean() / excess_T.std(ddof=1)
    variance = 1 - skew(excess_T) * ratio + (kurtosis(excess_T, fisher=False) - 1) / 4 * ratio**2
    return float(norm.cdf((ratio - target) * np.sqrt(len(excess_T) - 1) / np.sqrt(max(variance, 1e-12))))


def expected_highest_sharpe(trials_N: np.ndarray, count: int, spread: float = 0.0) -> float:
    """The Sharpe ratio that the best of `count` trials without skill is expected to show, per session.

    Args:
        trials_N: Sharpe ratios of the trials whose result is known; their spread is what chance can do.
        spread: what it is taken to be where fewer than two are known.
    """
    known_N = trials_N[np.isfinite(trials_N)]
    if count < 2:
        return 0.0
    spread = known_N.std(ddof=1) if len(known_N) > 1 else spread
    luck = (1 - _EULER) * norm.ppf(1 - 1 / count) + _EULER * norm.ppf(1 - 1 / (count * np.e))
    return float(spread * luck)


def deflated_sharpe(excess_T: np.ndarray, trials_N: np.ndarray, count: int) -> float:
    """DSR: the PSR against what the best of all trials would show without skill.

    Args:
        excess_T: the return that the claim is about, here that over 1/N.
        trials_N: ratios of the same quantity. Where fewer than two are known, their spread is that of independent trials.
    """
    return probabilistic_sharpe(excess_T, expected_highest_sharpe(trials_N, count, 1 / np.sqrt(len(excess_T))))


def effective_trials(returns_TN: np.ndarray) -> int:
    """Number of different bets among the trials: clusters of average linkage, cut where the correlation is 0.5."""
    moving_TN = returns_TN[:, returns_TN.std(axis=0) > 1e-12]
    if moving_TN.shape[1] < 2:
        return moving_TN.shape[1]
    distance_NN = np.clip(1 - np.corrcoef(moving_TN, rowvar=False), 0, 2)
    np.fill_diagonal(distance_NN, 0)
    tree = linkage(squareform(distance_NN, checks=False), "average")
    return int(fcluster(tree, 1 - SAME_BET, "distance").max())


def overfitting_logits(returns_TK: np.ndarray, blocks: int = CSCV_BLOCKS) -> np.ndarray:
    """CSCV: for each way to halve the blocks, the logit of the out-of-sample rank of the in-sample winner, logit_C.

    Sums and sums of squares of each block are enough for a Sharpe ratio of any union of blocks, so all splits are two
    matrix products.

    Args:
        blocks: even; leading sessions that do not fill a block are left out.
    """
    length = len(returns_TK) // blocks
    strategies = returns_TK.shape[1]
    if len(returns_TK) < SHORTEST or strategies < 2:
        return np.zeros(0)
    blocks_SLK = returns_TK[len(returns_TK) - length * blocks :].reshape(blocks, length, strategies)
    sum_SK, square_SK = blocks_SLK.sum(axis=1), (blocks_SLK**2).sum(axis=1)
    chosen_CS = _halves(blocks)
    inside_CK = _sharpe_of_sums(chosen_CS @ sum_SK, chosen_CS @ square_SK, length * blocks // 2)
    outside_CK = _sharpe_of_sums((1 - chosen_CS) @ sum_SK, (1 - chosen_CS) @ square_SK, length * blocks // 2)
    winner_C = inside_CK.argmax(axis=1)
    of_winner_C1 = np.take_along_axis(outside_CK, winner_C[:, None], axis=1)
    ties_C = (outside_CK == of_winner_C1).sum(axis=1)  # itself among them
    rank_C = (outside_CK < of_winner_C1).sum(axis=1) + (ties_C + 1) / 2
    share_C = rank_C / (strategies + 1)
    return np.log(share_C / (1 - share_C))


def probability_of_overfitting(logits_C: np.ndarray) -> float:
    """PBO: how often the in-sample winner is in the lower half out of sample. NaN without splits."""
    return float((logits_C <= 0).mean()) if len(logits_C) else float("nan")


def _halves(blocks: int) -> np.ndarray:
    """float [C, S]: 1 for the blocks of the in-sample half, every choice once."""
    choices = np.array(list(combinations(range(blocks), blocks // 2)))
    chosen_CS = np.zeros((len(choices), blocks))
    np.put_along_axis(chosen_CS, choices, 1.0, axis=1)
    return chosen_CS


def _sharpe_of_sums(sum_CK: np.ndarray, square_CK: np.ndarray, count: int) -> np.ndarray:
    """Per session; 0 where nothing moves, so that cash is neither best nor worst."""
    mean_CK = sum_CK / count
    variance_CK = (square_CK - count * mean_CK**2) / (count - 1)
    moves_CK = variance_CK > 1e-16
    return np.where(moves_CK, mean_CK / np.sqrt(np.where(moves_CK, variance_CK, 1.0)), 0.0)
