"""The panel on disk: adjusted prices in, a folder of memory-mapped arrays out, named by the hash of what made it.

Two passes over the prices, a block of assets at a time: the first makes returns and masks and from them the market
proxy, the second the channels, which need the proxy. Nothing holds more than a few blocks.
finjepa_model/training/panel.py reads what is written here.

Shape suffixes: A assets, D sessions, R rows of the panel, N observations of a block in a row, F channels.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import duckdb
import numpy as np
import polars as pl

from finjepa_model.errors import FinJEPAError
from finjepa_model.training.panel import FORMAT
from finjepa_pipeline.features.channels import Channel, available, features
from finjepa_pipeline.features.market import MarketProxy
from finjepa_pipeline.features.rolling import Layout
from finjepa_pipeline.features.rows import Rows
from finjepa_pipeline.features.source import AdjustedPrices, Block
from finjepa_pipeline.prices.store import current_revision
from finjepa_pipeline.settings import Settings

CODE_VERSION = "1"  # raise it when the same prices and the same table would give other numbers
COLUMNS = {"returns": np.float32, "beta": np.float32, "observed": np.bool_, "tradable": np.bool_, "eligible": np.bool_}

Work = TypeVar("Work")
Result = TypeVar("Result")


def build_panel(connection: duckdb.DuckDBPyConnection, settings: Settings, channels: Iterable[str] = ()) -> Path:
    """Make the panel of the active feed, or find it made, and point `panels/current.json` at it.

    Args:
        channels: names to keep; empty for all that the source allows.

    Raises:
        FinJEPAError: if there are no prices, or a channel is unknown or not possible with this source.
    """
    revision = current_revision(connection)
    if revision is None:
        raise FinJEPAError("there are no prices to make features of; run `finjepa ingest` first")
    prices = AdjustedPrices(connection)
    chosen = choose(prices.columns, channels)
    identity = {"feed": revision.feed, "data_version": revision.data_version}
    folder = settings.panels / panel_hash(identity, chosen)
    if not folder.exists():
        settings.panels.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=settings.panels))
        try:
            write_panel(prices, chosen, identity, beside)
            os.replace(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    pointer = settings.panels / ".tmp-current.json"
    pointer.write_text(json.dumps({"panel": folder.name}))
    os.replace(pointer, settings.panels / "current.json")
    return folder


def current_panel(settings: Settings) -> Path:
    """The panel that was built last.

    Raises:
        FinJEPAError: if there is none.
    """
    pointer = settings.panels / "current.json"
    try:
        folder = settings.panels / json.loads(pointer.read_text())["panel"]
    except (OSError, ValueError, KeyError) as error:
        raise FinJEPAError(f"there is no feature panel in {settings.panels}; run `finjepa ingest` first") from error
    if not folder.is_dir():
        raise FinJEPAError(f"the feature panel {folder} is gone; run `finjepa ingest` to make it again")
    return folder


def choose(columns: frozenset[str], names: Iterable[str]) -> tuple[Channel, ...]:
    """The named channels, or all that these columns allow, in the order of the table."""
    possible = available(columns)
    names = tuple(names)
    missing = sorted(set(names) - {channel.name for channel in possible})
    if missing:
        raise FinJEPAError(
            f"channels: {', '.join(missing)} cannot be made of the columns {', '.join(sorted(columns))}; "
            f"possible are {', '.join(channel.name for channel in possible)}"
        )
    return tuple(channel for channel in possible if not names or channel.name in names)


def panel_hash(identity: dict[str, str], channels: tuple[Channel, ...]) -> str:
    """The name of the panel: a hash of the prices, the channels and the code that make it."""
    made_of = {"format": FORMAT, "code": CODE_VERSION, "channels": [channel.row() for channel in channels], **identity}
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def write_panel(prices: AdjustedPrices, channels: tuple[Channel, ...], identity: dict[str, str], folder: Path) -> None:
    """Fill an empty folder with the panel's files; the manifest comes last."""
    lengths_A = prices.last_A - prices.first_A + 1
    offsets = np.concatenate([[0], np.cumsum(lengths_A)])
    shift_A = offsets[:-1] - prices.first_A
    files = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (int(offsets[-1]),))
        for name, dtype in COLUMNS.items()
    }
    files["beta"][:] = 1.0

    def rows_of(block: Block) -> np.ndarray:
        return block.session_N + np.repeat(shift_A[block.assets], block.counts)

    narrow = ("close", "dollar_volume") if "dollar_volume" in prices.columns else ("close",)
    proxy = MarketProxy(len(prices.dates))
    for block in prices.blocks(narrow):
        rows_N = rows_of(block)
        returns_N = proxy.add(block)
        files["returns"][rows_N] = returns_N
        files["observed"][rows_N] = True
        files["tradable"][rows_N] = block.tradable_N
        files["eligible"][rows_N] = block.eligible_N
    market_returns = proxy.returns()
    np.save(folder / "market_returns.npy", market_returns)
    np.save(folder / "market_features.npy", np.zeros((len(prices.dates), 0), np.float32))

    shape = (int(offsets[-1]), len(channels))
    files["features"] = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float32, shape)
    log_market = np.log1p(market_returns.astype(np.float64))

    def compute(block: Block) -> tuple[Block, np.ndarray, np.ndarray]:
        rows = Rows(Layout(block.counts, np.zeros_like(block.counts)), block.session_N, block.columns, log_market)
        beta_N = rows.beta[rows.layout.place_N]
        return block, features(rows, channels), np.where(np.isnan(beta_N), 1.0, np.clip(beta_N, -5.0, 5.0))

    for block, features_NF, beta_N in in_order(compute, prices.blocks(tuple(sorted(prices.columns)))):
        rows_N = rows_of(block)
        files["features"][rows_N] = features_NF
        files["beta"][rows_N] = beta_N
    for file in files.values():
        file.flush()
    manifest = {
        "format": FORMAT,
        "content_hash": panel_hash(identity, channels),
        **identity,
        "config": {"channels": [channel.name for channel in channels], "columns": sorted(prices.columns)},
        "channels": [channel.row() for channel in channels],
        "market_channels": [],
        "dates": [str(date) for date in prices.dates],
        "assets": prices.assets,
        "offsets": offsets.tolist(),
        "first": prices.first_A.tolist(),
        "lengths": lengths_A.tolist(),
        "made_by": {
            "code": CODE_VERSION,
            "numpy": np.__version__,
            "polars": pl.__version__,
            "duckdb": duckdb.__version__,
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def in_order(work: Callable[[Work], Result], items: Iterable[Work]) -> Iterator[Result]:
    """Results in the order of the items, computed by two threads a few items ahead: NumPy leaves the interpreter
    lock.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        ahead = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 2:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
