"""Trailing statistics of the observations of a block of assets; see kernels.py for how they are made.

Shape suffixes: S assets, N observations of all of them in a row.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from finjepa_pipeline.features import kernels


@dataclass(frozen=True)
class Histories:
    """Where the observations of some assets stand in an array, and where they stand in the assets' own histories.

    Every method takes float64 [N], NaN where missing, and gives float64 [N].

    Attributes:
        counts_S: observations of each asset.
        skipped_S: observations of each asset before its first one here (0 unless the head was left out).
    """

    counts_S: np.ndarray
    skipped_S: np.ndarray

    @classmethod
    def of_one(cls, count: int) -> "Histories":
        """A single series."""
        return cls(np.array([count], np.int64), np.zeros(1, np.int64))

    @cached_property
    def ends_S(self) -> np.ndarray:
        return np.cumsum(self.counts_S)

    def lag(self, x_N: np.ndarray, steps: int = 1) -> np.ndarray:
        """x of `steps` observations ago; NaN before an asset's first one."""
        out_N = np.empty(len(x_N))
        kernels.lag(x_N, self.ends_S, steps, out_N)
        return out_N

    def mean(self, x_N: np.ndarray, window: int, least: int) -> np.ndarray:
        """Mean of the last `window` observations; NaN where fewer than `least` are known."""
        out_N = np.empty(len(x_N))
        kernels.mean(x_N, self.ends_S, self.skipped_S, window, least, out_N)
        return out_N

    def covariances(
        self, x_N: np.ndarray, y_N: np.ndarray, window: int, least: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Variance of x, variance of y and covariance, over the last observations at which both are known."""
        variance_x_N, variance_y_N, covariance_N = np.empty((3, len(x_N)))
        kernels.covariances(
            x_N, y_N, self.ends_S, self.skipped_S, window, least, variance_x_N, variance_y_N, covariance_N
        )
        return variance_x_N, variance_y_N, covariance_N

    def highest(self, x_N: np.ndarray, window: int) -> np.ndarray:
        """Maximum of the last `window` observations; NaN where all are missing."""
        out_N = np.empty(len(x_N))
        kernels.highest(x_N, self.ends_S, self.skipped_S, window, out_N)
        return out_N

    def median(self, x_N: np.ndarray, window: int, least: int) -> np.ndarray:
        """Median of the last `window` observations; NaN where fewer than `least` are known."""
        out_N = np.empty(len(x_N))
        kernels.median(x_N, self.ends_S, window, least, out_N)
        return out_N

    def decayed_mean(self, x_N: np.ndarray, span: int, least: int, window: int = 252) -> np.ndarray:
        """Exponentially weighted mean over the last `window` observations, weight (1 - 2 / (span + 1)) ** age.

        The tail beyond, 0.03 % of the weight at a span of 63 and a window of 252, is cut off: that is what makes the
        value independent of the history's start.
        """
        out_N = np.empty(len(x_N))
        decay = 1.0 - 2.0 / (span + 1.0)
        kernels.decayed_mean(x_N, self.ends_S, self.skipped_S, window, decay, least, out_N)
        return out_N

    def z_scores(self, x_N: np.ndarray, window: int, least: int) -> np.ndarray:
        """(x - mean) / standard deviation of the last observations, this one included; 0 where they do not vary."""
        out_N = np.empty(len(x_N))
        kernels.z_scores(x_N, self.ends_S, self.skipped_S, window, least, out_N)
        return out_N
