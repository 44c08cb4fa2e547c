"""Trailing sums and maxima whose value depends on the window and on nothing else.

A running sum that adds the new day and subtracts the old one drags its rounding errors along, so that a value depends
on where the history began: an appended day would differ from a rebuild. Here each window is the sum of a suffix and a
prefix of two neighbouring blocks that are anchored at an asset's first observation (van Herk, 1992): two cumulative
sums whatever the window, no subtraction, and the same bits from any starting point.

Two sums for the price of one: a cumulative sum waits for each addition, so that real and imaginary part run together.

Shape suffixes: S assets, N observations of all of them in a row, P padded observations (each asset starts at a
multiple of ANCHOR).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

ANCHOR = 252  # every window is this long or divides it


@dataclass(frozen=True)
class Layout:
    """Where the observations of some assets stand in a padded array.

    Attributes:
        counts_S: observations of each asset.
        starts_S: index, in the asset's own history, of its first observation here (0 unless the head was left out).
        anchor: length of the blocks; windows are as long or divide it.
    """

    counts_S: np.ndarray
    starts_S: np.ndarray
    anchor: int = ANCHOR

    @cached_property
    def head_S(self) -> np.ndarray:
        """Padding before each asset's first observation."""
        return self.starts_S % self.anchor

    @cached_property
    def blocks_S(self) -> np.ndarray:
        return np.maximum(-(-(self.head_S + self.counts_S) // self.anchor), 1)

    @cached_property
    def first_block_S(self) -> np.ndarray:
        return np.cumsum(self.blocks_S) - self.blocks_S

    @property
    def size(self) -> int:
        return int(self.blocks_S.sum()) * self.anchor

    @cached_property
    def place_N(self) -> np.ndarray:
        """Place of each observation in a padded array."""
        begin_S = self.first_block_S * self.anchor + self.head_S
        shift_S = begin_S - (np.cumsum(self.counts_S) - self.counts_S)
        return np.arange(int(self.counts_S.sum())) + np.repeat(shift_S, self.counts_S)

    @cached_property
    def position_P(self) -> np.ndarray:
        """Place within the asset's own blocks."""
        begin_S = self.first_block_S * self.anchor
        return np.arange(self.size) - np.repeat(begin_S, self.blocks_S * self.anchor)

    def pad(self, x_N: np.ndarray) -> np.ndarray:
        """float64 [P], NaN between assets."""
        x_P = np.full(self.size, np.nan)
        x_P[self.place_N] = x_N
        return x_P

    def lag(self, x_P: np.ndarray, steps: int) -> np.ndarray:
        """x of `steps` (at most the anchor) observations ago; NaN before an asset's first one."""
        y_P = np.empty_like(x_P)
        y_P[steps:] = x_P[:-steps]
        y_P.reshape(-1, self.anchor)[self.first_block_S, :steps] = np.nan
        return y_P

    def _sweep(self, accumulate: np.ufunc, x_P: np.ndarray, window: int, neutral: float) -> np.ndarray:
        x = x_P.reshape(-1, window)
        prefix = accumulate.accumulate(x, axis=1)
        suffix = np.empty_like(prefix)
        accumulate.accumulate(x[:, ::-1], axis=1, out=suffix[:, ::-1])
        suffix[(self.first_block_S + self.blocks_S) * (self.anchor // window) - 1] = neutral  # not into the next asset
        accumulate(prefix[1:, :-1], suffix[:-1, 1:], out=prefix[1:, :-1])
        return prefix.ravel()

    def totals(self, x_P: np.ndarray, y_P: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Sums of two series over the last `window` observations, a missing one counting 0."""
        both = np.empty(self.size, np.complex128)
        parts = both.view(np.float64)
        parts[0::2], parts[1::2] = x_P, y_P
        parts[np.isnan(parts)] = 0.0
        swept = self._sweep(np.add, both, window, 0.0)
        return np.real(swept), np.imag(swept)

    def total(self, x_P: np.ndarray, window: int) -> np.ndarray:
        """Sum over the last `window` observations, a missing one counting 0."""
        x_P = np.where(np.isnan(x_P), 0.0, x_P)
        if self.anchor % window == 0:
            return self._sweep(np.add, x_P, window, 0.0)
        total_P = x_P.copy()
        for steps in range(1, window):
            total_P[steps:] += np.where(self.position_P[steps:] >= steps, x_P[:-steps], 0.0)
        return total_P

    def count(self, x_P: np.ndarray, window: int) -> np.ndarray:
        """How many of the last `window` observations are not missing."""
        known_P = ~np.isnan(x_P)
        known_S = np.add.reduceat(known_P.reshape(-1, self.anchor).sum(1), self.first_block_S)
        from_S = self.head_S + self.counts_S - known_S  # where it begins, if it has no hole
        expected_P = self.position_P >= np.repeat(from_S, self.blocks_S * self.anchor)
        if np.array_equal(expected_P[self.place_N], known_P[self.place_N]):
            begin_P = np.repeat(from_S - 1, self.blocks_S * self.anchor)
            return np.clip(self.position_P - begin_P, 0, window).astype(np.float64)
        return self.total(known_P.astype(np.float64), window)

    def highest(self, x_P: np.ndarray, window: int) -> np.ndarray:
        """Maximum of the last `window` observations; -inf where all are missing."""
        return self._sweep(np.maximum, np.where(np.isnan(x_P), -np.inf, x_P), window, -np.inf)

    def mean(self, x_P: np.ndarray, window: int, least: int) -> np.ndarray:
        """Mean of the last `window` observations; NaN where fewer than `least` are known."""
        return self._over(self.total(x_P, window), self.count(x_P, window), least)

    def means(self, x_P: np.ndarray, y_P: np.ndarray, window: int, least: int) -> tuple[np.ndarray, np.ndarray]:
        """Means of two series that are missing together."""
        count_P = self.count(x_P, window)
        total_x_P, total_y_P = self.totals(x_P, y_P, window)
        return self._over(total_x_P, count_P, least), self._over(total_y_P, count_P, least)

    @staticmethod
    def _over(total_P: np.ndarray, count_P: np.ndarray, least: int) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(count_P >= least, total_P / count_P, np.nan)

    def median(self, x_P: np.ndarray, window: int, least: int) -> np.ndarray:
        """Median of the last `window` observations; NaN where fewer than `least` are known.

        A selection has no rounding, so that Polars' running median does not depend on where it began.
        """
        asset_N = np.repeat(np.arange(len(self.counts_S)), self.counts_S)
        frame = pl.DataFrame({"asset": asset_N, "x": pl.Series(x_P[self.place_N], nan_to_null=True)})
        median = pl.col("x").rolling_median(window, min_samples=least).over("asset")
        return self.pad(frame.select(median.cast(pl.Float64).fill_null(np.nan)).to_series().to_numpy())

    def decayed_mean(self, x_P: np.ndarray, span: int, least: int) -> np.ndarray:
        """Exponentially weighted mean over the last `anchor` observations, weight (1 - 2 / (span + 1)) ** age.

        The tail beyond, 0.03 % of the weight at a span of 63 and an anchor of 252, is cut off: that is what makes the
        value independent of the history's start.
        """
        decay = 1.0 - 2.0 / (span + 1.0)
        grow = decay ** -np.arange(self.anchor, dtype=np.float64)
        known_P = ~np.isnan(x_P)
        both = np.empty((self.size // self.anchor, self.anchor), np.complex128)
        parts = both.view(np.float64)
        parts[:, 0::2] = np.where(known_P, x_P, 0.0).reshape(both.shape) * grow
        parts[:, 1::2] = known_P.reshape(both.shape) * grow
        prefix = np.add.accumulate(both, axis=1)
        suffix = np.add.accumulate(both[:, ::-1], axis=1)[:, ::-1] * decay**self.anchor
        suffix[self.first_block_S + self.blocks_S - 1] = 0.0
        prefix[1:, :-1] += suffix[:-1, 1:]
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_P = (np.real(prefix) / np.imag(prefix)).ravel()
        return np.where(self.count(x_P, self.anchor) >= least, mean_P, np.nan)

    def z_scores(self, x_P: np.ndarray, window: int, least: int) -> np.ndarray:
        """(x - mean) / standard deviation of the last observations, this one included; 0 where they do not vary."""
        count_P = self.count(x_P, window)
        total_P, square_P = self.totals(x_P, x_P * x_P, window)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_P = total_P / count_P
            variance_P = (square_P - count_P * mean_P**2) / (count_P - 1)
            varies_P = variance_P > 1e-10 * square_P / count_P
            z_P = np.where(varies_P, (x_P - mean_P) / np.sqrt(variance_P), 0.0 * x_P)
        return np.where(count_P >= least, z_P, np.nan)
