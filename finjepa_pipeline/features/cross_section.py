"""What takes all assets of one session at once: ranks within the universe, and how much they move together.

Each session is computed by itself, from what is stored of the assets in float32, so that one more session costs one more.

Shape suffixes: A assets, C sessions of a stretch, R rows of the panel, D sessions, T days of the correlation window.
"""

from dataclasses import dataclass

import numpy as np

STRETCH = 63  # sessions that are looked up in the asset-major rows at a time
DAYS = 21
MOST_TRADED = 256


@dataclass(frozen=True)
class Grid:
    """The panel's rows: row r of asset a on session d is shift_A[a] + d, for first_A[a] <= d <= last_A[a]."""

    shift_A: np.ndarray
    first_A: np.ndarray
    last_A: np.ndarray


def cross_section(
    grid: Grid, columns: dict[str, np.ndarray], since: int, rank_R: np.ndarray, together: tuple[np.ndarray, np.ndarray]
) -> None:
    """Fill in the sessions from `since` on.

    Args:
        columns: returns, liquidity, eligible and observed of the panel, [R].
        rank_R: float32, Gaussian rank of an eligible asset's liquidity within the universe; others are left alone.
        together: float64 [D] mean pairwise correlation, and share of the first principal component.
    """
    sessions = len(together[0])
    for begin in range(since, sessions, STRETCH):
        end = min(begin + STRETCH, sessions)
        alive = np.flatnonzero((grid.first_A < end) & (grid.last_A >= begin))
        session_C = np.arange(begin, end)
        inside_AC = (session_C >= grid.first_A[alive, None]) & (session_C <= grid.last_A[alive, None])
        row_AC = np.where(inside_AC, grid.shift_A[alive, None] + session_C, 0)
        eligible_CA = (columns["eligible"][row_AC] & inside_AC).T
        for place, session in enumerate(session_C):
            chosen = np.flatnonzero(eligible_CA[place])
            rows = row_AC[chosen, place]
            liquidity = columns["liquidity"][rows]
            if len(rows):
                rank_R[rows] = gaussian_ranks(liquidity)
            long_enough = session - grid.first_A[alive[chosen]] >= DAYS
            together[0][session], together[1][session] = co_movement(rows[long_enough], liquidity[long_enough], columns)


def gaussian_ranks(values: np.ndarray) -> np.ndarray:
    """Normal quantiles of the mid-ranks; equal values get equal ranks, whatever their order."""
    from scipy.special import ndtri

    ordered = np.sort(values)
    twice = np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")
    return ndtri(twice / (2.0 * len(values)))


def co_movement(rows: np.ndarray, liquidity: np.ndarray, columns: dict[str, np.ndarray]) -> tuple[float, float]:
    """Mean pairwise correlation and first eigenvalue's share, of the most traded assets over the days up to their rows."""
    if len(rows) > MOST_TRADED:
        rows = rows[np.sort(np.argsort(-liquidity, kind="stable")[:MOST_TRADED])]
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
