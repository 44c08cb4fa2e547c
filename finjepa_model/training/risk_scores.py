"""How good forecasts of risk were: losses, calibration, and tests that count dates, never rows.

Shapes: R rows (date, asset), D dates in ascending order, Q quantile levels, C portfolios.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Comparison:
    """One forecast less another one: mean difference of their losses by date, and its t-value. Negative: the first is better."""

    difference: float
    t_value: float
    dates: int


def qlike(realised_X: np.ndarray, forecast_X: np.ndarray) -> np.ndarray:
    """Loss of a forecast of variance (Patton 2011): ratio - log ratio - 1, 0 where it is exact."""
    ratio_X = np.maximum(realised_X, 1e-12) / np.maximum(forecast_X, 1e-12)
    return ratio_X - np.log(ratio_X) - 1


def date_means(x_R: np.ndarray, date_R: np.ndarray) -> np.ndarray:
    """Mean over the rows of each date, in order of date."""
    _, place_R, count_D = np.unique(date_R, return_inverse=True, return_counts=True)
    return np.bincount(place_R, x_R) / count_D


def within_dates(x_R: np.ndarray, date_R: np.ndarray) -> np.ndarray:
    """Less the mean of the date."""
    _, place_R = np.unique(date_R, return_inverse=True)
    return x_R - date_means(x_R, date_R)[place_R]


def r2_within_dates(target_R: np.ndarray, forecast_R: np.ndarray, date_R: np.ndarray) -> float:
    """Share of the variance within dates that a forecast explains, without a slope or a constant fitted to it."""
    target_R, forecast_R = within_dates(target_R, date_R), within_dates(forecast_R, date_R)
    return float(1 - np.square(target_R - forecast_R).sum() / max(np.square(target_R).sum(), 1e-30))


def newey_west_error(x_D: np.ndarray, lag: int) -> float:
    """Standard error of a mean whose terms are correlated up to `lag` (Newey and West 1987); NaN for fewer than eight terms."""
    count = len(x_D)
    if count < 8:
        return math.nan
    centred_D = x_D - x_D.mean()
    variance = centred_D @ centred_D / count
    for k in range(1, min(lag, count - 1) + 1):
        variance += 2 * (1 - k / (lag + 1)) * (centred_D[k:] @ centred_D[:-k]) / count
    return math.sqrt(max(variance, 1e-30) / count)


def newey_west_t(x_D: np.ndarray, lag: int) -> float:
    """t-value of that mean."""
    return float(x_D.mean() / newey_west_error(x_D, lag)) if len(x_D) >= 8 else math.nan


def compare(loss_D: np.ndarray, other_D: np.ndarray, lag: int) -> Comparison:
    """Diebold and Mariano (1995) on losses by date.

    Args:
        lag: dates whose targets overlap.
    """
    apart_D = loss_D - other_D
    return Comparison(float(apart_D.mean()), newey_west_t(apart_D, lag), len(apart_D))


def compare_variance(realised_D: np.ndarray, other_D: np.ndarray, lag: int) -> Comparison:
    """Relative difference of realised volatility of two portfolios that are formed anew on each date.

    The t-value is of the difference of log variances, which a crisis does not decide alone.
    """
    relative = math.sqrt(realised_D.mean() / other_D.mean()) - 1
    return Comparison(relative, newey_west_t(np.log(realised_D / other_D), lag), len(realised_D))


def pinball(outcome_R: np.ndarray, quantile_RQ: np.ndarray, levels_Q: np.ndarray) -> np.ndarray:
    gap_RQ = outcome_R[:, None] - quantile_RQ
    return np.maximum(levels_Q * gap_RQ, (levels_Q - 1) * gap_RQ)


def crps(outcome_R: np.ndarray, quantile_RQ: np.ndarray, levels_Q: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score: twice the mean pinball loss over evenly spaced levels (Gneiting and Raftery 2007)."""
    return 2 * pinball(outcome_R, quantile_RQ, levels_Q).mean(-1)


def quantile_score(outcome_R: np.ndarray, quantile_RQ: np.ndarray, levels_Q: np.ndarray) -> np.ndarray:
    """The same of a few levels at any distance: each stands for the levels that are nearest to it."""
    edges = np.concatenate([[0.0], (levels_Q[1:] + levels_Q[:-1]) / 2, [1.0]])
    return 2 * pinball(outcome_R, quantile_RQ, levels_Q) @ np.diff(edges)


def log_score(outcome_R: np.ndarray, variance_R: np.ndarray) -> np.ndarray:
    """Log density of the outcome under a normal forecast with mean 0; higher is better."""
    return -0.5 * (np.log(2 * np.pi * variance_R) + np.square(outcome_R) / variance_R)


def probability_integral(outcome_R: np.ndarray, quantile_RQ: np.ndarray, levels_Q: np.ndarray) -> np.ndarray:
    """Where the outcome lies in its forecast distribution, in [0, 1]: uniform if the forecasts are calibrated."""
    below_R = (quantile_RQ < outcome_R[:, None]).sum(-1)
    edges = np.concatenate([[0.0], levels_Q, [1.0]])
    return (edges[below_R] + edges[below_R + 1]) / 2


def coverage(outcome_R: np.ndarray, low_R: np.ndarray, high_R: np.ndarray) -> float:
    return float(((outcome_R >= low_R) & (outcome_R <= high_R)).mean())


def kupiec(breach_D: np.ndarray, level: float) -> float:
    """p-value that breaches come with probability `level` (Kupiec 1995), likelihood ratio with one degree of freedom."""
    breaches, count = int(breach_D.sum()), len(breach_D)
    observed = breaches / count
    ratio = 2 * (_log_likelihood(breaches, count, observed) - _log_likelihood(breaches, count, level))
    return _chi_square_tail(ratio)


def christoffersen(breach_D: np.ndarray) -> float:
    """p-value that a breach does not depend on whether there was one the date before (Christoffersen 1998)."""
    before, now = breach_D[:-1].astype(bool), breach_D[1:].astype(bool)
    after_breach, after_calm = now[before], now[~before]
    pooled = now.mean() if len(now) else 0.0
    ratio = 2 * sum(
        _log_likelihood(int(part.sum()), len(part), float(part.mean())) - _log_likelihood(int(part.sum()), len(part), pooled)
        for part in (after_breach, after_calm)
        if len(part)
    )  # fmt: skip
    return _chi_square_tail(ratio)


def targeting_utility(realised_D: np.ndarray, forecast_D: np.ndarray) -> np.ndarray:
    """Realised utility, % a year, of holding risk in proportion to 1 / forecast volatility (Bollerslev, Hood, Huss and Pedersen
    2018, equation 26: Sharpe ratio .4, risk aversion 2, target 10 %): 4 % for a perfect forecast.

    Args:
        realised_D, forecast_D: variances.
    """
    ratio_D = realised_D / forecast_D
    return 100 * (0.08 * np.sqrt(ratio_D) - 0.04 * ratio_D)


def _log_likelihood(hits: int, count: int, rate: float) -> float:
    misses = count - hits
    return (hits * math.log(max(rate, 1e-12)) if hits else 0.0) + (
        misses * math.log(max(1 - rate, 1e-12)) if misses else 0.0
    )


def _chi_square_tail(value: float) -> float:
    """Beyond a value, with one degree of freedom."""
    return math.erfc(math.sqrt(max(value, 0.0) / 2))
