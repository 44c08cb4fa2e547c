"""Intervals about the mean of a few seeds."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t


def half_width(values: Sequence[float] | np.ndarray) -> float:
    """Of the 95 % interval about the mean, by Student's t; of two values or more."""
    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
