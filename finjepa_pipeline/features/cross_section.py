"""What takes all assets of one session at once: ranks within the universe, and how much they move together.

Each session is computed by itself, from what is stored of the assets in float32, so that one more session costs one more.

Shape suffixes: A assets, C sessions of a stretch, R rows of the panel, D sessions, T days of the correlation window.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from finjepa_pipeline.features import kernels
from finjepa_pipeline.features.threads import in_order

STRETCH = 63  # sessions that are looked up in the asset-major rows at a time
DAYS = 21
MOST_TRADED = 256


@dataclass(frozen=True)
class Grid:
    """The panel's rows: row r of asset a on session d is shift_A[a] + d, for first_A[a] <= d <= last_A[a]."""

    shift_A: np.ndarray
    first_A: np.ndarray
    last_A: np.ndarray

    def rows(self, assets: slice, counts: np.ndarray, session_N: np.ndarray) -> np.ndarray:
        """Row of each observation of a run of assets."""
        return session_N + np.repeat(self.shift_A[assets], counts)


def cross_section(
    grid: Grid, columns: Mapping[str, np.ndarray], since: int, rank_R: np.ndarray, together_2D: np.ndarray
) -> None:
    """Fill in the sessions from `since` on.

    Args:
        columns: returns, liquidity, eligible and observed of the panel, [R].
        rank_R: float32, Gaussian rank of an eligible asset's liquidity within the universe; others are left alone.
        together_2D: float64, mean pairwise correlation, and share of the first principal component.
    """

    eligible_R, liquidity_R = columns["eligible"], columns["liquidity"]

    def stretch(begin: int) -> None:
        sessions = range(begin, min(begin + STRETCH, together_2D.shape[1]))
        alive = np.flatnonzero((grid.first_A < sessions.stop) & (grid.last_A >= begin))
        eligible_CA = np.zeros((len(sessions), len(alive)), bool)
        liquidity_CA, rank_CA = np.empty((2, *eligible_CA.shape), np.float32)
        kernels.gather(
            alive, grid.shift_A, grid.first_A, grid.last_A, begin, eligible_R, liquidity_R, eligible_CA, liquidity_CA
        )
        for place, session in enumerate(sessions):
            chosen = np.flatnonzero(eligible_CA[place])
            chosen = chosen[np.argsort(liquidity_CA[place, chosen])]
            rank_CA[place, chosen] = gaussian_ranks(liquidity_CA[place, chosen])
            old_enough = session - grid.first_A[alive[chosen]] >= DAYS
            most_traded = alive[np.sort(chosen[old_enough][-MOST_TRADED:])]
            together_2D[:, session] = co_movement(grid.shift_A[most_traded] + session, columns)
        kernels.put_back(alive, grid.shift_A, begin, eligible_CA, rank_CA, rank_R)

    for _ in in_order(stretch, range(since, together_2D.shape[1], STRETCH)):
        pass


def gaussian_ranks(ascending: np.ndarray) -> np.ndarray:
    """Normal quantiles of the mid-ranks of sorted values; equal values get equal ranks."""
    starts = np.flatnonzero(np.diff(ascending, prepend=np.nan) != 0)
    counts = np.diff(starts, append=len(ascending))
    return np.repeat(ndtri((starts + counts / 2.0) / max(len(ascending), 1)), counts)


def co_movement(rows: np.ndarray, columns: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Mean pairwise correlation and first eigenvalue's share of the assets with these rows, over the days up to them."""
    window = rows[:, None] + np.arange(1 - DAYS, 1)
    returns_AT = columns["returns"][window].astype(np.float64)
    returns_AT = returns_AT[columns["observed"][window].all(axis=1)]
    centred_AT = returns_AT - returns_AT.mean(axis=1, keepdims=True)
    deviation_A = np.sqrt((centred_AT**2).sum(axis=1, keepdims=True))
    varied = deviation_A[:, 0] > 1e-4
    standard_AT = centred_AT[varied] / deviation_A[varied]
    assets = len(standard_AT)
    if assets < 2:
        return np.nan, np.nan
    total = float((standard_AT.sum(axis=0) ** 2).sum())
    largest = float(np.linalg.eigvalsh(standard_AT.T @ standard_AT)[-1])
    return (total - assets) / (assets * (assets - 1.0)), largest / assets
