"""Adjusted prices in, the panel's memory-mapped files out.

Two passes over the prices, a block of assets at a time: the first makes returns and masks and from them the market, the
second the channels, which need the market. Nothing holds more than a few blocks; the files are the only large thing.
finjepa_model/training/panel.py reads what is written here.

Shape suffixes: A assets, D sessions, R rows of the panel, N observations of a block in a row, F channels.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import duckdb
import numpy as np
import polars as pl

from finjepa_model.training.panel import FORMAT
from finjepa_pipeline.features.channels import Channel, features
from finjepa_pipeline.features.cross_section import Grid, cross_section
from finjepa_pipeline.features.growth import CODE_VERSION, Growth
from finjepa_pipeline.features.market import (
    MARKET_CHANNELS,
    SUMS,
    Sessions,
    add_up,
    calendar_series,
    market_features,
    market_inputs,
    proxy_returns,
)
from finjepa_pipeline.features.rolling import Layout
from finjepa_pipeline.features.rows import Rows
from finjepa_pipeline.features.source import AdjustedPrices, Block, Span

COLUMNS = {
    "returns": np.float32,
    "liquidity": np.float32,
    "beta": np.float32,
    "observed": np.bool_,
    "tradable": np.bool_,
    "eligible": np.bool_,
}
RANK = "liquidity_rank"

Work = TypeVar("Work")
Result = TypeVar("Result")


class PanelWriter:
    """The files of a panel in an empty folder, and where each row of them is.

    Args:
        grown: what is kept of the panel before; None to compute everything.
    """

    def __init__(self, prices: AdjustedPrices, channels: tuple[Channel, ...], folder: Path, grown: Growth | None):
        self.prices, self.channels, self.folder, self.grown = prices, channels, folder, grown
        self.lengths_A = prices.last_A - prices.first_A + 1
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths_A)])
        self.grid = Grid(self.offsets[:-1] - prices.first_A, prices.first_A, prices.last_A)
        self.since = grown.since if grown else 0
        self.span: Span = grown.span if grown else prices.everything()
        rows = int(self.offsets[-1])
        self.files = {name: self._file(name, dtype, (rows,)) for name, dtype in COLUMNS.items()}
        self.files["features"] = self._file("features", np.float32, (rows, len(channels)))
        self.rank_R = self._file("rank", np.float32, (rows,))
        if grown is not None:
            self._keep(grown)

    def _file(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
        return np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", dtype, shape)

    def _keep(self, grown: Growth) -> None:
        """Copy what holds of the panel before; of a restated asset its ranks, which the universe gave it."""
        panel = grown.base.panel
        sources = {name: getattr(panel, name) for name in self.files if name != "liquidity"}
        sources["liquidity"] = grown.base.liquidity
        names = [channel.name for channel in self.channels]
        for asset, was in enumerate(grown.before_A.tolist()):
            if was < 0:
                continue
            first = int(panel.first[was])
            kept = min(int(panel.lengths[was]), self.since - first)
            old, new = int(panel.offsets[was]), int(self.grid.shift_A[asset]) + first
            if kept <= 0:
                continue
            if self.span.whole_A[asset]:
                if RANK in names:
                    low, high = int(self.prices.first_A[asset]), int(self.prices.last_A[asset]) + 1
                    low, high = max(low, first), min(high, first + kept)
                    old_rows, shift = slice(old + low - first, old + high - first), int(self.grid.shift_A[asset])
                    self.rank_R[shift + low : shift + high] = panel.features[old_rows, names.index(RANK)]
                continue
            for name, source in sources.items():
                self.files[name][new : new + kept] = source[old : old + kept]

    def rows(self, block: Block) -> np.ndarray:
        """Row of each observation of a block."""
        return block.session_N + np.repeat(self.grid.shift_A[block.assets], block.counts)

    def write_market(self) -> np.ndarray:
        """First pass: returns, masks, the market proxy and its context; returns the proxy's returns, float32 [D]."""
        sessions = len(self.prices.dates)
        sums_DK, together = np.zeros((sessions, len(SUMS))), np.full((2, sessions), np.nan)
        if self.grown is not None:
            sums_DK[: self.since] = self.grown.base.sums_DK[: self.since]
            together[:, : self.since] = self.grown.base.together_2D[:, : self.since]
        narrow = ("close", "dollar_volume") if "dollar_volume" in self.prices.columns else ("close",)
        work = ((block, market_inputs(block)) for block in self.prices.blocks(narrow, self.span))
        for block, inputs in work:
            new_N = block.new_N
            rows_N = self.rows(block)[new_N]
            values = {"returns": inputs.returns_N, "liquidity": inputs.liquidity_N, "tradable": block.tradable_N}
            for name, value_N in (values | {"eligible": block.eligible_N}).items():
                put(self.files[name], rows_N, value_N[new_N])
            put(self.files["observed"], rows_N, np.ones(len(rows_N), bool))
            add_up(sums_DK, block, inputs, self.since)
        cross_section(self.grid, self.files, self.since, self.rank_R, (together[0], together[1]))
        market = Sessions(sums_DK, together[0], together[1], calendar_series(self.prices.dates))
        np.save(self.folder / "market_sums.npy", sums_DK)
        np.save(self.folder / "market_together.npy", together)
        np.save(self.folder / "market_features.npy", market_features(market))
        returns_D = proxy_returns(sums_DK)
        np.save(self.folder / "market_returns.npy", returns_D)
        return returns_D

    def write_features(self, market_returns_D: np.ndarray) -> None:
        """Second pass: the channels, and beta to the market proxy (1 while unknown)."""
        log_market_D = np.log1p(market_returns_D.astype(np.float64))

        def compute(block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            rows_N = self.rows(block)
            columns = {**block.columns, "rank": self.rank_R[rows_N]}
            rows = Rows(Layout(block.counts, block.skipped), block.session_N, columns, log_market_D)
            beta_N = rows.beta[rows.layout.place_N]
            beta_N = np.where(np.isnan(beta_N), 1.0, np.clip(beta_N, -5.0, 5.0))
            new_N = block.new_N
            return rows_N[new_N], features(rows, self.channels)[new_N], beta_N[new_N]

        self.files["beta"][self._computed()] = 1.0
        wide = tuple(sorted(self.prices.columns))
        for rows_N, features_NF, beta_N in in_order(compute, self.prices.blocks(wide, self.span)):
            put(self.files["features"], rows_N, features_NF)
            put(self.files["beta"], rows_N, beta_N)

    def _computed(self) -> np.ndarray | slice:
        """Rows that are not copied."""
        if self.grown is None:
            return slice(None)
        begin_A = np.minimum(self.span.from_A, self.prices.last_A + 1)
        count_A = self.prices.last_A + 1 - begin_A
        start_A = begin_A + self.grid.shift_A - (np.cumsum(count_A) - count_A)
        return np.arange(int(count_A.sum())) + np.repeat(start_A, count_A)

    def finish(self, identity: dict[str, str]) -> None:
        """Write the fingerprints and, last, the manifest."""
        prices = self.prices
        (self.folder / "rank.npy").unlink()
        np.savez(self.folder / "fingerprints.npz", assets=prices.whole_A, universe=prices.universe_D)
        versions = {"numpy": np.__version__, "polars": pl.__version__, "duckdb": duckdb.__version__}
        manifest = {
            "format": FORMAT,
            **identity,
            "config": {"channels": [channel.name for channel in self.channels]},
            "columns": sorted(prices.columns),
            "channels": [channel.row() for channel in self.channels],
            "market_channels": [channel.row() for channel in MARKET_CHANNELS],
            "dates": [str(date) for date in prices.dates],
            "assets": prices.assets,
            "offsets": self.offsets.tolist(),
            "first": prices.first_A.tolist(),
            "lengths": self.lengths_A.tolist(),
            "delisting_return": prices.delisting_return_A.tolist(),
            "made_by": {"code": CODE_VERSION, **versions},
            "grown_from": self.grown.base.panel.content_hash if self.grown else None,
        }
        (self.folder / "manifest.json").write_text(json.dumps(manifest))


def write_panel(
    prices: AdjustedPrices,
    channels: tuple[Channel, ...],
    identity: dict[str, str],
    folder: Path,
    grown: Growth | None = None,
) -> None:
    """Fill an empty folder with the panel's files; the manifest comes last."""
    writer = PanelWriter(prices, channels, folder, grown)
    writer.write_features(writer.write_market())
    writer.finish(identity)


def put(file: np.ndarray, rows_N: np.ndarray, values_N: np.ndarray) -> None:
    """file[rows_N] = values_N for ascending rows: as one run where it is one."""
    if len(rows_N) and rows_N[-1] - rows_N[0] == len(rows_N) - 1:
        file[rows_N[0] : rows_N[-1] + 1] = values_N
    else:
        file[rows_N] = values_N


def in_order(work: Callable[[Work], Result], items: Iterable[Work]) -> Iterator[Result]:
    """Results in the order of the items, computed by two threads a few items ahead: NumPy leaves the interpreter lock."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        ahead = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 4:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
