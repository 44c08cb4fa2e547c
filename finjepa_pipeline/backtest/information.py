"""Do forecasts order the assets: information coefficients with errors that know that labels overlap.

Shapes: K decisions, N assets. NaN marks an asset without a forecast or without an outcome.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

_LEAST_ASSETS = 3  # a correlation of two points is always one


@dataclass(frozen=True)
class Information:
    """Mean cross-sectional correlation of forecast and outcome.

    Attributes:
        ratio: ICIR, mean per standard deviation over decisions, not annualised.
        t: of the mean, with Newey-West errors; low, high: 95 % interval of the mean by the same errors.
    """

    mean: float
    ratio: float
    t: float
    low: float
    high: float
    decisions: int


def information(forecast_KN: np.ndarray, outcome_KN: np.ndarray, *, ranks: bool, lags: int = 0) -> Information:
    """IC, or RankIC with `ranks`.

    Args:
        lags: decisions by which outcomes overlap, at least horizon - 1 (Newey and West 1987, Bartlett weights).
    """
    series_K = np.array([_correlation(f, o, ranks) for f, o in zip(forecast_KN, outcome_KN, strict=True)])
    series_K = series_K[np.isfinite(series_K)]
    if len(series_K) < 3:
        nan = float("nan")
        return Information(nan, nan, nan, nan, nan, len(series_K))
    mean, error = float(series_K.mean()), newey_west_error(series_K, lags)
    spread = float(series_K.std(ddof=1))
    return Information(
        mean=mean,
        ratio=mean / spread if spread > 0 else float("nan"),
        t=mean / error if error > 0 else float("nan"),
        low=mean - 1.96 * error,
        high=mean + 1.96 * error,
        decisions=len(series_K),
    )


def newey_west_error(series_K: np.ndarray, lags: int) -> float:
    """Standard error of the mean of a series whose neighbours up to `lags` apart may be correlated."""
    centred_K = series_K - series_K.mean()
    count = len(series_K)
    variance = centred_K @ centred_K / count
    for lag in range(1, min(lags, count - 1) + 1):
        variance += 2 * (1 - lag / (lags + 1)) * (centred_K[lag:] @ centred_K[:-lag]) / count
    return float(np.sqrt(max(variance, 0.0) / count))


def _correlation(forecast_N: np.ndarray, outcome_N: np.ndarray, ranks: bool) -> float:
    known_N = np.isfinite(forecast_N) & np.isfinite(outcome_N)
    if known_N.sum() < _LEAST_ASSETS:
        return float("nan")
    x_N, y_N = forecast_N[known_N], outcome_N[known_N]
    if ranks:
        x_N, y_N = rankdata(x_N), rankdata(y_N)
    if x_N.std() == 0 or y_N.std() == 0:
        return float("nan")
    return float(np.corrcoef(x_N, y_N)[0, 1])
