"""The panel of the home: made whole of the adjusted tables, once for the same prices, named by the hash of what made it."""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import polars as pl

from finjepa_model.data.panel import FORMAT
from finjepa_model.errors import FinJEPAError
from finjepa_model.features import MARKET_CHANNELS, AdjustedPrices, Channel, choose, fill_panel
from finjepa_model.features.adjust import runs_of
from finjepa_model.features.build import PRICE_COLUMNS
from finjepa_model.files import folder_written_whole, to_json, write_text
from finjepa_pipeline.prices.history import current_revision, derived_options, require_shown
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import sql

CODE_VERSION = "5"  # raise it when the same prices and the same table would give other numbers
RUN_OBSERVATIONS = 1_000_000  # of a query: few queries, and some 100 MB of them at a time


def build_panel(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    channels: Iterable[str] = (),
    make_current: bool = True,
    of: tuple[str, str] | None = None,
) -> Path:
    """Make the panel of the active feed, or find it made, and point `panels/current.json` at it.

    Args:
        channels: names to keep; empty for all that the source allows.
        make_current: False leaves the home's panel what it was.
        of: feed and data version that the tables must show; whatever they show where None.

    Raises:
        FinJEPAError: if there are no prices, or others, or a channel is unknown or not possible with this source.
    """
    revision = current_revision(connection)
    if revision is None:
        raise FinJEPAError("there are no prices to make features of; run `finjepa ingest` first")
    if of is not None:
        require_shown(connection, *of)
    universe = derived_options(connection)
    if settings.duckdb_memory_limit is None:
        connection.execute("SET memory_limit = '512MB'")  # the prices are read once: nothing is gained by keeping them
    prices = adjusted_prices(connection)
    chosen = choose(prices.columns, channels)
    identity = {"feed": revision.feed, "data_version": revision.data_version, "universe": universe_version(connection)}
    identity["content_hash"] = panel_hash(identity, chosen)
    identity["universe_options"] = universe  # of the lineage; who was in the universe is in the hash
    folder = settings.panels / identity["content_hash"]
    if not folder.exists():
        for left in settings.panels.glob(".tmp-*"):  # by a process that died; the warehouse lets one in at a time
            shutil.rmtree(left, ignore_errors=True)
        with folder_written_whole(folder) as beside:
            write_panel(prices, chosen, identity, beside)
    if make_current:
        write_text(settings.panels / "current.json", to_json({"panel": folder.name}))
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


def write_panel(prices: AdjustedPrices, channels: tuple[Channel, ...], identity: dict[str, str], folder: Path) -> None:
    """Fill an empty folder with the panel's files; the manifest comes last.

    Raises:
        OSError: if the disk has no room for them, before anything is computed.
    """

    def allocate(name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
        file = folder / f"{name}.npy"
        array = np.lib.format.open_memmap(file, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):  # writing a page that the disk has no room for would kill the process
            with file.open("rb+") as stream:
                os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
        return array

    manifest = fill_panel(prices, channels, allocate)
    versions = {module.__name__: module.__version__ for module in (np, pl, duckdb)}
    manifest |= {**identity, "made_by": {"code": CODE_VERSION, **versions}}
    (folder / "manifest.json").write_text(to_json(manifest))


def panel_hash(identity: dict[str, str], channels: tuple[Channel, ...]) -> str:
    """The name of the panel: a hash of the prices, the channels and the code that make it."""
    tables = [channel.row() for channel in (*channels, *MARKET_CHANNELS)]
    made_of = {"format": FORMAT, "code": CODE_VERSION, "channels": tables, **identity}
    return hashlib.sha256(to_json(made_of, sort_keys=True).encode()).hexdigest()[:16]


def adjusted_prices(connection: duckdb.DuckDBPyConnection) -> AdjustedPrices:
    """`adjusted_prices`, `universe` and `corporate_actions` behind an open connection.

    Raises:
        FinJEPAError: if the tables are empty.
    """
    # What its holder gets beyond the last close is asked only of an entity that has ended.
    assets = connection.sql("""
        SELECT entity, symbol, min(date) AS first_date, max(date) AS last_date, count(*) AS observations,
            coalesce(any_value(delisting_return), 0)::DOUBLE AS delisting_return
        FROM adjusted_prices JOIN entities USING (entity) GROUP BY entity, symbol ORDER BY entity""").pl()
    if assets.is_empty():
        raise FinJEPAError("there are no adjusted prices to make features of; run `finjepa ingest` first")
    dates = connection.sql("SELECT date FROM price_sessions ORDER BY date").pl()["date"].to_numpy()
    names, rows_A = assets["entity"].to_list(), assets["observations"].to_numpy()
    has = (f"EXISTS (FROM adjusted_prices WHERE {name} IS NOT NULL)" for name in PRICE_COLUMNS)
    filled = connection.sql(f"SELECT {', '.join(has)}").fetchall()[0]
    columns = frozenset({"close", *itertools.compress(PRICE_COLUMNS, filled)})
    connection.register("asset_frame", assets.select("entity", "symbol").with_row_index("asset").to_arrow())
    connection.execute("CREATE OR REPLACE TEMP TABLE panel_assets AS FROM asset_frame")
    connection.unregister("asset_frame")

    def runs() -> Iterator[pl.DataFrame]:
        for run in runs_of(rows_A, RUN_OBSERVATIONS):
            bounds = {"first": names[run.start], "last": names[run.stop - 1]}
            frame = connection.sql(sql("features/observations"), params=bounds).pl()
            session = pl.Series("session", np.searchsorted(dates, frame["date"].to_numpy()), pl.Int64)
            yield frame.drop("date").with_columns(session, pl.col(pl.Float64).fill_nan(None)).sort("asset", "session")

    return AdjustedPrices(
        assets=names,
        dates=dates.astype("datetime64[D]"),
        first_A=np.searchsorted(dates, assets["first_date"].to_numpy()),
        last_A=np.searchsorted(dates, assets["last_date"].to_numpy()),
        delisting_return_A=assets["delisting_return"].to_numpy(),
        columns=columns,
        runs=runs,
    )


def universe_version(connection: duckdb.DuckDBPyConnection) -> str:
    """Short hash of who was in the universe when."""
    [(found,)] = connection.sql("SELECT coalesce(bit_xor(hash(date, entity)), 0) FROM universe").fetchall()
    return f"{found:016x}"[:8]
