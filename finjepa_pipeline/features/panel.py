"""The panel of the home: made once for the same prices, named by the hash of what made it, grown from the one before."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import duckdb

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json, write_text
from finjepa_model.training.panel import FORMAT
from finjepa_pipeline.features.channels import Channel, available
from finjepa_pipeline.features.growth import CODE_VERSION, GROWN, Base, growth
from finjepa_pipeline.features.market import MARKET_CHANNELS
from finjepa_pipeline.features.source import AdjustedPrices
from finjepa_pipeline.features.writer import write_panel
from finjepa_pipeline.prices.store import current_revision
from finjepa_pipeline.settings import Settings


def build_panel(
    connection: duckdb.DuckDBPyConnection, settings: Settings, channels: Iterable[str] = (), make_current: bool = True
) -> Path:
    """Make the panel of the active feed, or find it made, and point `panels/current.json` at it.

    Args:
        channels: names to keep; empty for all that the source allows.
        make_current: False leaves the home's panel what it was: this one is for a checkpoint that reads other channels.

    Raises:
        FinJEPAError: if there are no prices, or a channel is unknown or not possible with this source.
    """
    revision = current_revision(connection)
    if revision is None:
        raise FinJEPAError("there are no prices to make features of; run `finjepa ingest` first")
    if settings.duckdb_memory_limit is None:
        connection.execute("SET memory_limit = '512MB'")  # the prices are read once: nothing is gained by keeping them
    base = _base(settings, revision.feed) if make_current else None  # another's files are not grown for it
    prices = AdjustedPrices(connection, base.last_date if base else "0001-01-01")
    chosen = choose(prices.columns, channels)
    identity = {"feed": revision.feed, "data_version": revision.data_version, "universe": prices.universe_version}
    identity["content_hash"] = panel_hash(identity, chosen)
    folder = settings.panels / identity["content_hash"]
    if not folder.exists():
        for left in settings.panels.glob(".tmp-*"):  # by a process that died; the warehouse lets one in at a time
            shutil.rmtree(left, ignore_errors=True)
        beside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=settings.panels))
        try:
            grown = growth(prices, chosen, base) if base else None
            write_panel(prices, chosen, identity, beside, grown)
            if grown and grown.in_place:  # said before it is true: whoever dies in between leaves a base that is copied
                (grown.base.panel.folder / GROWN).touch()
            os.replace(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
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


def _base(settings: Settings, feed: str) -> Base | None:
    """The panel before, if it is of the same feed and its files can be grown."""
    try:
        base = Base(current_panel(settings))
    except FinJEPAError:
        return None
    return base if base.panel.manifest["feed"] == feed else None


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
    tables = [channel.row() for channel in (*channels, *MARKET_CHANNELS)]
    made_of = {"format": FORMAT, "code": CODE_VERSION, "channels": tables, **identity}
    return hashlib.sha256(to_json(made_of, sort_keys=True).encode()).hexdigest()[:16]
