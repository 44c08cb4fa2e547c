"""The feature panel, opened and never loaded.

A panel is a folder of raw .npy files that the pipeline writes (finjepa_pipeline/features/panel.py). Rows are asset-
major and ragged: asset a has one row per session of the panel's calendar from its first to its last observation, so
that a window is one run of memory.

Shape suffixes: D sessions, A assets, R rows, F channels, M market channels, B decision dates, N assets of a sample, T
days of a window, H days ahead.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from finjepa_model.errors import FinJEPAError

FORMAT = "finjepa-panel-1"


class Panel:
    """A market's features, returns and masks: memory-mapped from a folder (`open`), or made of arrays.

    Row r of asset a on session d is `offsets[a] + d - first[a]`; asset a owns `lengths[a]` rows. Rows that no asset owns mean
    nothing.

    Attributes:
        channels: names of the F channels; `manifest["channels"]` has their units and formulas.
        assets: the A symbols, in ascending order.
        dates: datetime64[D], the sessions.
        offsets: int64 [A], an asset's first row; first: int64 [A], the session of an asset's first row; lengths: int64 [A].
        features: float32 [R, F], normalised, 0 where unknown.
        returns: float32 [R], simple total return since the last observed close.
        observed, tradable, eligible: bool [R].
        beta: float32 [R], trailing beta to the market proxy, 1.0 while unknown.
        liquidity: float32 [R], mean dollar volume of the last 63 observations; None where the source has no volumes.
        delisting_return: float64 [A], what a holder gets beyond the last close if the asset ends before the panel does.
        market_returns: float32 [D], simple return of the market proxy.
        market_features: float32 [D, M], the market context, normalised.
    """

    def __init__(self, manifest: dict[str, Any], arrays: Mapping[str, np.ndarray], folder: Path | None = None):
        """
        Args:
            manifest, arrays: of `finjepa_model.features.fill_panel`.
            folder: that they lie in; None where they are in memory alone.
        """
        self._folder = folder
        self.manifest = manifest
        self.content_hash: str = manifest.get("content_hash", "")
        self.channels = tuple(channel["name"] for channel in manifest["channels"])
        self.market_channels = tuple(channel["name"] for channel in manifest["market_channels"])
        self.assets = tuple(manifest["assets"])
        self.dates = np.array(manifest["dates"], dtype="datetime64[D]")
        self.offsets = np.array(manifest["offsets"], dtype=np.int64)
        self.first = np.array(manifest["first"], dtype=np.int64)
        self.lengths = np.array(manifest["lengths"], dtype=np.int64)
        self.delisting_return = np.array(manifest.get("delisting_return", [0.0] * len(self.assets)), dtype=np.float64)
        self.features = arrays["features"]
        self.returns = arrays["returns"]
        self.observed = arrays["observed"]
        self.tradable = arrays["tradable"]
        self.eligible = arrays["eligible"]
        self.beta = arrays["beta"]
        self.liquidity = arrays["liquidity"] if "dollar_volume" in manifest.get("columns", ()) else None
        self.market_returns = arrays["market_returns"]
        self.market_features = arrays["market_features"]

    @classmethod
    def open(cls, folder: str | Path) -> "Panel":
        """Open a panel's folder; costs the manifest, not the data.

        Raises:
            FinJEPAError: if the folder is not a panel of this format.
        """
        folder = Path(folder)
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            if manifest["format"] != FORMAT:
                raise FinJEPAError(f"{folder} is a panel of format {manifest['format']}, not {FORMAT}: build it again")
            return cls(manifest, _Files(folder), folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FinJEPAError(f"{folder} is not a feature panel ({error}): materialise feature_panel again") from error

    @property
    def folder(self) -> Path:
        assert self._folder is not None  # who asks has opened it
        return self._folder

    def date_index(self, date: str | np.datetime64) -> int:
        """The last session that is not after `date`.

        Raises:
            FinJEPAError: if the panel begins after that date.
        """
        index = int(np.searchsorted(self.dates, np.asarray(date, "datetime64[D]"), side="right")) - 1
        if index < 0:
            raise FinJEPAError(f"{date} is before the first session of the panel, {self.dates[0]}")
        return index

    def rows(self, dates_X: ArrayLike, assets_X: ArrayLike) -> np.ndarray:
        """Row numbers int64 of (session, asset) pairs, broadcast together; -1 where the asset has no row that day."""
        dates_X, assets_X = np.broadcast_arrays(np.asarray(dates_X, np.int64), np.asarray(assets_X, np.int64))
        position_X = dates_X - self.first[assets_X]
        inside_X = (assets_X >= 0) & (position_X >= 0) & (position_X < self.lengths[assets_X])
        return np.where(inside_X, self.offsets[assets_X] + position_X, -1)

    def eligible_assets(self, date: int, window: int) -> np.ndarray:
        """Assets, int64 ascending, that are in the universe at session `date` and have `window` rows that end there."""
        assets_A = np.arange(len(self.assets))
        rows_A = self.rows(date, assets_A)
        ready_A = (rows_A >= 0) & (date - self.first >= window - 1)
        return assets_A[ready_A][self.eligible[rows_A[ready_A]]]

    def windows(
        self, dates_B: ArrayLike, assets_BN: ArrayLike, length: int, channels: tuple[str, ...] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The last `length` sessions up to and including each date.

        Args:
            channels: to read, in this order; those that the panel lacks are unknown, 0. All of the panel by default.

        Returns:
            features [B, N, T, F] float32 and observed [B, N, T] bool; zeros and False where the asset has no row, and
            where its index is -1.
        """
        assets_BN = np.asarray(assets_BN, np.int64)
        dates_BN = np.broadcast_to(np.asarray(dates_B, np.int64)[:, None], assets_BN.shape)
        position_BN = dates_BN - self.first[assets_BN] - (length - 1)
        whole_BN = (assets_BN >= 0) & (position_BN >= 0) & (position_BN + length <= self.lengths[assets_BN])
        start_X = np.where(whole_BN, self.offsets[assets_BN] + position_BN, 0).ravel()
        features_BNTF = np.zeros((*assets_BN.shape, length, len(self.channels)), np.float32)
        observed_BNT = np.zeros((*assets_BN.shape, length), bool)
        if whole_BN.any():
            features_BNTF = self._runs(self.features, start_X, length).reshape(features_BNTF.shape)
            observed_BNT = self._runs(self.observed, start_X, length).reshape(observed_BNT.shape)
        torn_X = np.nonzero(~whole_BN)
        if len(torn_X[0]):
            # windows that stick out of an asset's life are gathered row by row, so that none reads its neighbour
            days_XT = dates_BN[torn_X][:, None] + np.arange(1 - length, 1)
            rows_XT = self.rows(days_XT, assets_BN[torn_X][:, None])
            features_BNTF[torn_X] = np.where((rows_XT >= 0)[..., None], self.features[rows_XT], np.float32(0))
            observed_BNT[torn_X] = (rows_XT >= 0) & self.observed[rows_XT]
        return in_channels(features_BNTF, self.channels, channels), observed_BNT

    def market_windows(self, dates_B: ArrayLike, length: int, channels: tuple[str, ...] | None = None) -> np.ndarray:
        """The market's context over the last `length` sessions up to and including each date.

        Args:
            channels: as of `windows`.

        Returns:
            float32 [B, T, M]; zeros before the panel begins.
        """
        days_BT = np.asarray(dates_B, np.int64)[:, None] + np.arange(1 - length, 1)
        features_BTM = np.where((days_BT >= 0)[..., None], self.market_features[days_BT], np.float32(0))
        return in_channels(features_BTM, self.market_channels, channels)

    def returns_after(self, dates_B: ArrayLike, assets_BN: ArrayLike, days: int) -> tuple[np.ndarray, np.ndarray]:
        """Daily simple returns of the sessions date+1 .. date+days.

        Returns:
            returns [B, N, H] float32 and traded [B, N, H] bool; 0 and False beyond an asset's end and where its index
            is -1.
        """
        assets_BN = np.asarray(assets_BN, np.int64)
        days_BH = np.asarray(dates_B, np.int64)[:, None] + np.arange(1, days + 1)
        rows_BNH = self.rows(days_BH[:, None, :], assets_BN[:, :, None])
        inside_BNH = rows_BNH >= 0
        returns_BNH = np.where(inside_BNH, self.returns[rows_BNH], np.float32(0))
        return returns_BNH, inside_BNH & self.tradable[rows_BNH]

    @staticmethod
    def _runs(array: np.ndarray, start_X: np.ndarray, length: int) -> np.ndarray:
        """[X, length * width]: runs of whole rows, each an item of a view whose items overlap: one copy, no index per row.

        One number of each run is read first: those misses of the cache overlap, the misses of the runs would not.
        """
        width = array[:1].size
        array.reshape(-1)[start_X * width]
        run = np.dtype((np.void, length * width * array.itemsize))
        runs = np.ndarray(len(array) - length + 1, run, array, strides=array.strides[:1])
        return runs[start_X].view(array.dtype).reshape(len(start_X), length * width)


class _Files(dict[str, np.ndarray]):
    """The arrays of a folder, mapped when they are asked for."""

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> np.ndarray:
        return np.load(self._folder / f"{name}.npy", mmap_mode="r")


def in_channels(values_XF: np.ndarray, has: tuple[str, ...], wanted: tuple[str, ...] | None) -> np.ndarray:
    """Values of the channels that a panel has, as those that are wanted; 0 where it has them not."""
    if wanted is None or wanted == has:
        return values_XF
    wanted_XF = np.zeros((*values_XF.shape[:-1], len(wanted)), values_XF.dtype)
    known = [place for place, name in enumerate(wanted) if name in has]
    wanted_XF[..., known] = values_XF[..., [has.index(wanted[place]) for place in known]]
    return wanted_XF
