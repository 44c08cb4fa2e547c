"""Which (session, asset) pairs a batch is made of: sessions first, then a subset of the assets that were eligible there.

Drawing pairs at random would weigh a session by the size of its universe, and recent ones most. Every draw is a function
of (seed, step), so that a run that is resumed at a step sees the batches that it would have seen, and processes that share
a batch out need not talk about it.

Shape suffixes: A assets, K sessions of the index, P pairs, B sessions of a batch, N assets of a sample.
"""

from dataclasses import dataclass

import numpy as np

from finjepa_model.errors import FinJEPAError
from finjepa_model.training.panel import Panel


@dataclass(frozen=True)
class EligibleIndex:
    """Eligible pairs, by session.

    Attributes:
        sessions: int64 [K], ascending.
        starts: int64 [K + 1]; the assets of session k are `assets[starts[k] : starts[k + 1]]`, ascending.
        assets: int32 [P].
    """

    sessions: np.ndarray
    starts: np.ndarray
    assets: np.ndarray

    @classmethod
    def of(cls, panel: Panel, window: int, start: int, stop: int, least: int, allowed: np.ndarray | None = None):
        """Pairs of the sessions start .. stop - 1 that are in the universe and have `window` rows behind them.

        Nothing is asked of what comes after: an asset that is about to be delisted is as eligible as any.

        Args:
            least: sessions with fewer eligible assets are left out.
            allowed: bool [A], the assets to choose from; all by default.

        Raises:
            FinJEPAError: if no session is left.
        """
        sessions_P, assets_P = [], []
        for asset in range(len(panel.assets)):
            first, length = int(panel.first[asset]), int(panel.lengths[asset])
            low, high = max(start, first + window - 1), min(stop, first + length)
            if low < high and (allowed is None or allowed[asset]):
                row = int(panel.offsets[asset]) - first
                found = low + np.flatnonzero(panel.eligible[row + low : row + high])
                sessions_P.append(found.astype(np.int32))
                assets_P.append(np.full(len(found), asset, np.int32))
        session_P = np.concatenate([np.zeros(0, np.int32), *sessions_P])
        asset_P = np.concatenate([np.zeros(0, np.int32), *assets_P])
        counts = np.bincount(session_P, minlength=len(panel.dates))
        sessions = np.flatnonzero(counts >= max(least, 1))
        if not len(sessions):
            raise FinJEPAError(
                f"no session from {panel.dates[start]} to {panel.dates[min(stop, len(panel.dates)) - 1]} has {least} "
                f"eligible assets with {window} sessions of history (at most {counts.max(initial=0)}): "
                "ask for fewer assets, a shorter window or more prices"
            )
        order = np.argsort(session_P, kind="stable")
        kept = order[(counts >= max(least, 1))[session_P[order]]]
        return cls(sessions, np.concatenate([[0], np.cumsum(counts[sessions])]), asset_P[kept])

    def __len__(self) -> int:
        return len(self.sessions)


class DateSampler:
    """Batches of (sessions [B], assets [B, N]): each epoch is a new order of the sessions.

    Raises:
        FinJEPAError: if a session of the index has fewer assets than a sample needs.
    """

    def __init__(self, index: EligibleIndex, batch_size: int, n_assets: int, seed: int):
        if int(np.diff(index.starts).min()) < n_assets:
            raise FinJEPAError(
                f"the index has sessions with fewer than {n_assets} assets: build it with least={n_assets}"
            )
        self.index = index
        self.batch_size = batch_size
        self.n_assets = n_assets
        self.seed = seed

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Sessions int64 [B] and assets int64 [B, N] of a step."""
        draw = step * self.batch_size + np.arange(self.batch_size)
        epoch_B, place_B = np.divmod(draw, len(self.index))
        chosen_B = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epoch_B):  # one, or two where an epoch ends inside the batch
            order = np.random.default_rng([self.seed, int(epoch)]).permutation(len(self.index))
            chosen_B[epoch_B == epoch] = order[place_B[epoch_B == epoch]]
        random = np.random.default_rng([self.seed, step, 1])
        start_B = self.index.starts[chosen_B]
        subset_BN = subsets(random, self.index.starts[chosen_B + 1] - start_B, self.n_assets)
        return self.index.sessions[chosen_B], self.index.assets[start_B[:, None] + subset_BN].astype(np.int64)


def subsets(random: np.random.Generator, size_B: np.ndarray, count: int) -> np.ndarray:
    """int64 [B, N]: `count` different numbers below size_B, every subset equally likely (Floyd's algorithm).

    Works draw by draw for all of the batch at once; touches N numbers a session, not the whole universe.
    """
    chosen_BN = np.full((len(size_B), count), -1, np.int64)
    for draw in range(count):
        top_B = size_B - count + draw
        pick_B = random.integers(0, top_B + 1)
        taken_B = (chosen_BN[:, :draw] == pick_B[:, None]).any(axis=1)
        chosen_BN[:, draw] = np.where(taken_B, top_B, pick_B)
    return chosen_BN
