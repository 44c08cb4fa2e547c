"""Adjusted prices in, the panel's memory-mapped files out.

The prices are read once, a run of assets at a time. As they come, they make returns and masks and from them the market;
then the channels, which need the market, are computed block by block. finjepa_model/training/panel.py reads what is
written here.

Shape suffixes: A assets, D sessions, R rows of the files, N observations of a block in a row, F channels.
"""

import os
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numba
import numpy as np
import polars as pl

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json
from finjepa_model.training.panel import FORMAT
from finjepa_pipeline.features import kernels
from finjepa_pipeline.features.channels import Channel, features
from finjepa_pipeline.features.cross_section import Grid, cross_section
from finjepa_pipeline.features.growth import CODE_VERSION, Growth
from finjepa_pipeline.features.market import (
    MARKET_CHANNELS,
    SUMS,
    MarketInputs,
    Sessions,
    add_up,
    calendar_series,
    market_features,
    market_inputs,
    proxy_returns,
)
from finjepa_pipeline.features.rolling import Histories
from finjepa_pipeline.features.rows import Rows
from finjepa_pipeline.features.slots import ROOM, Slots
from finjepa_pipeline.features.source import AdjustedPrices, Block, Span
from finjepa_pipeline.features.threads import in_order

COLUMNS = {
    "returns": np.float32,
    "liquidity": np.float32,
    "beta": np.float32,
    "observed": np.bool_,
    "tradable": np.bool_,
    "eligible": np.bool_,
}
RANK = "liquidity_rank"


class PanelWriter:
    """The files of a panel in an empty folder, and where each row of them is.

    Args:
        grown: what is kept of the panel before; None to compute everything.
    """

    def __init__(self, prices: AdjustedPrices, channels: tuple[Channel, ...], folder: Path, grown: Growth | None):
        self.prices, self.channels, self.folder, self.grown = prices, channels, folder, grown
        self.lengths_A = prices.last_A - prices.first_A + 1
        alive_A = prices.last_A >= len(prices.dates) - ROOM
        self.slots = grown.slots if grown else Slots.fresh(self.lengths_A, alive_A)
        self.grid = Grid(self.slots.start_A - prices.first_A, prices.first_A, prices.last_A)
        self.since = grown.since if grown else 0
        self.span: Span = grown.span if grown else prices.everything()
        widths = dict.fromkeys(COLUMNS, ()) | {"features": (len(channels),)}
        self.files = {
            name: self._file(name, COLUMNS.get(name, np.float32), (self.slots.size, *width))
            for name, width in widths.items()
        }
        # zeros take no memory until they are written
        self.rank_R, self.event_R = np.zeros(self.slots.size, np.float32), np.zeros(self.slots.size, bool)
        self.blocks: deque[Block] = deque()
        self._clear()

    def _file(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.memmap:
        file = self.folder / f"{name}.npy"
        if self.grown is None:
            return np.lib.format.open_memmap(file, "w+", dtype, shape)
        share(self.grown.base.panel.folder / file.name, file, self.grown, np.dtype((dtype, shape[1:])).itemsize)
        return np.lib.format.open_memmap(file, "r+")

    def _clear(self) -> None:
        """Make the rows that are computed those of days on which nothing was observed."""
        if self.grown is None:
            self.files["beta"][: self.slots.used] = 1.0
            return
        begin_A = np.minimum(self.span.from_A, self.prices.last_A + 1)
        count_A = self.prices.last_A + 1 - begin_A
        start_A = begin_A + self.grid.shift_A - (np.cumsum(count_A) - count_A)
        rows = np.arange(int(count_A.sum())) + np.repeat(start_A, count_A)
        for name, file in self.files.items():
            file[rows] = name == "beta"
        self._keep_ranks(self.grown)

    def _keep_ranks(self, grown: Growth) -> None:
        """An asset that moved keeps the ranks that the universe gave it, up to the first session that is ranked again."""
        panel = grown.base.panel
        if RANK not in panel.channels:
            return
        ranks_R = panel.features[:, panel.channels.index(RANK)]
        for asset in np.flatnonzero(grown.moved_A & (grown.before_A >= 0)):
            was = int(grown.before_A[asset])
            low = max(int(panel.first[was]), int(self.prices.first_A[asset]))
            high = min(int(panel.first[was] + panel.lengths[was]), int(self.prices.last_A[asset]) + 1, self.since)
            if low < high:
                old, new = int(panel.offsets[was] - panel.first[was]), int(self.grid.shift_A[asset])
                self.rank_R[new + low : new + high] = ranks_R[old + low : old + high]

    def write_market(self) -> np.ndarray:
        """Read the prices; write returns, masks, the market proxy and its context. Returns the proxy's, float32 [D]."""
        sessions = len(self.prices.dates)
        sums_DK, together_2D = np.zeros((sessions, len(SUMS))), np.full((2, sessions), np.nan)
        if self.grown is not None:
            sums_DK[: self.since] = self.grown.base.sums_DK[: self.since]
            together_2D[:, : self.since] = self.grown.base.together_2D[:, : self.since]
        for marks_R, table in ((self.files["eligible"], "universe"), (self.event_R, "events")):
            self.prices.mark(table, self.span, self.grid.shift_A, marks_R)
        for block, inputs in in_order(self._write_inputs, self.prices.blocks(self.span)):
            add_up(sums_DK, block, inputs, self.since)
            self.blocks.append(block)
        cross_section(self.grid, self.files, self.since, self.rank_R, together_2D)
        market = Sessions(sums_DK, together_2D[0], together_2D[1], calendar_series(self.prices.dates))
        returns_D = proxy_returns(sums_DK)
        for name, array in (("sums", sums_DK), ("together", together_2D), ("returns", returns_D)):
            np.save(self.folder / f"market_{name}.npy", array)
        np.save(self.folder / "market_features.npy", market_features(market))
        return returns_D

    def _write_inputs(self, block: Block) -> tuple[Block, MarketInputs]:
        rows_N = self.grid.rows(block.assets, block.counts, block.session_N)
        inputs = market_inputs(block, self.files["eligible"][rows_N])
        found = {"returns": inputs.returns_N, "liquidity": inputs.liquidity_N, "tradable": block.tradable_N}
        for name, values_N in (found | {"observed": np.ones(len(rows_N), bool)}).items():
            kernels.scatter(values_N, block.new_N, rows_N, self.files[name])
        return block, inputs

    def write_features(self, market_returns_D: np.ndarray) -> None:
        """The channels, and beta to the market proxy (1 while unknown)."""
        log_market_D = np.log1p(market_returns_D.astype(np.float64))

        def write(block: Block) -> None:
            rows_N = self.grid.rows(block.assets, block.counts, block.session_N)
            looked_up = {
                "rank": self.rank_R[rows_N].astype(np.float64),
                "event": self.event_R[rows_N].astype(np.float64),
            }
            rows = Rows(
                Histories(block.counts, block.skipped), block.session_N, block.columns | looked_up, log_market_D
            )
            beta_N = np.nan_to_num(np.clip(rows.beta, -5.0, 5.0), nan=1.0)
            kernels.scatter(beta_N, block.new_N, rows_N, self.files["beta"])
            features_NF = features(rows, self.channels)
            write_rows(file, at, rows_N[block.new_N], features_NF if block.new_N.all() else features_NF[block.new_N])

        at = self.files["features"].offset
        file = os.open(self.folder / "features.npy", os.O_WRONLY)
        try:
            for _ in in_order(write, self._given_away()):
                pass
        finally:
            os.close(file)

    def _given_away(self) -> Iterator[Block]:
        """The blocks, each forgotten when it is taken, so that memory is free as the file grows."""
        while self.blocks:
            yield self.blocks.popleft()

    def finish(self, identity: dict[str, str]) -> None:
        """Write the fingerprints and, last, the manifest."""
        prices, slots = self.prices, self.slots
        prints = {"assets": prices.whole_A, "universe": prices.universe_D, "room": slots.room_A, "used": slots.used}
        np.savez(self.folder / "fingerprints.npz", **prints)
        versions = {module.__name__: module.__version__ for module in (np, numba, pl, duckdb)}
        manifest = {
            "format": FORMAT,
            **identity,
            "config": {"channels": [channel.name for channel in self.channels]},
            "columns": sorted(prices.columns),
            "channels": [channel.row() for channel in self.channels],
            "market_channels": [channel.row() for channel in MARKET_CHANNELS],
            "dates": [str(date) for date in prices.dates],
            "assets": prices.assets,
            "delisting_return": prices.delisting_return_A.tolist(),
            "offsets": slots.start_A.tolist(),
            "first": prices.first_A.tolist(),
            "lengths": self.lengths_A.tolist(),
            "made_by": {"code": CODE_VERSION, **versions},
            "grown_from": self.grown.base.panel.content_hash if self.grown else None,
        }
        (self.folder / "manifest.json").write_text(to_json(manifest))


def write_panel(
    prices: AdjustedPrices,
    channels: tuple[Channel, ...],
    identity: dict[str, str],
    folder: Path,
    grown: Growth | None = None,
) -> None:
    """Fill an empty folder with the panel's files; the manifest comes last.

    Raises:
        FinJEPAError: if the disk has no room for them.
    """
    rows = int((prices.last_A - prices.first_A + 1).sum())
    needed = rows * (4 * len(channels) + sum(np.dtype(dtype).itemsize for dtype in COLUMNS.values()))
    free = shutil.disk_usage(folder).free
    if needed > free and not (grown and grown.in_place):
        raise FinJEPAError(
            f"the panel needs {needed / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB left: free some space "
            "(older panels in that folder can be deleted)"
        )
    writer = PanelWriter(prices, channels, folder, grown)
    writer.write_features(writer.write_market())
    writer.finish(identity)


def write_rows(file: int, at: int, rows_N: np.ndarray, values_NF: np.ndarray) -> None:
    """Rows of a file whose first one begins at byte `at`, a run of neighbours at a time.

    Of 2 GB, writing takes a fifth of the time that it takes to map pages and to touch them.
    """
    ends = np.append(np.flatnonzero(np.diff(rows_N) != 1) + 1, len(rows_N)).tolist()
    width, begin = values_NF.itemsize * values_NF.shape[1], 0
    for end in ends if len(rows_N) else ():
        left, place = values_NF[begin:end].data.cast("B"), at + int(rows_N[begin]) * width
        while left:
            done = os.pwrite(file, left, place)
            left, place = left[done:], place + done
        begin = end


def share(source: Path, target: Path, grown: Growth, row_bytes: int) -> None:
    """Give a new panel a file of its base: the same one where only its room is written, otherwise a copy."""
    if grown.in_place:
        try:
            os.link(source, target)
            return
        except OSError:  # a file system without hard links
            pass
    size = source.stat().st_size
    left = size - (grown.slots.size - grown.base.slots.used) * row_bytes
    with source.open("rb") as old, target.open("wb") as new:
        while left > 0 and (done := os.copy_file_range(old.fileno(), new.fileno(), left)):
            left -= done
        new.truncate(size)
