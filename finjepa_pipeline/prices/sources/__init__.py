"""Where prices come from: one interface, a module for each source that reaches outside, and one for those that
need nothing."""

import datetime
import os
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.calendar import AUTO, DEFAULT_CALENDAR, sessions
from finjepa_pipeline.prices.sources.base import Feed, PriceSource, Snapshot, SourceFile
from finjepa_pipeline.prices.sources.builtin import SampleSource, SyntheticSource
from finjepa_pipeline.prices.sources.files import FilesSource
from finjepa_pipeline.prices.sources.hf import HubSource
from finjepa_pipeline.prices.sources.yahoo import YahooSource
from finjepa_pipeline.prices.synthetic import SyntheticConfig
from finjepa_pipeline.settings import Settings

__all__ = ["Feed", "PriceSource", "PriceSourceConfig", "Snapshot", "SourceFile", "make_feed"]

SOURCES = ("sample", "files", "hf", "yfinance", "synthetic")
_MARKET = ("variant", "seed", "assets", "sessions")  # of a synthetic one
_OWNERS = {"path": "files", "date_format": "files", "dataset_name": "hf", "revision": "hf"}
_OWNERS |= {f"synthetic_{option}": "synthetic" for option in _MARKET}
HUB_DATASET = "paperswithbacktest/Stocks-Daily-Price"


class PriceSourceConfig(dg.Config):
    """Which prices to ingest. Without a data source the home carries on with what it holds, or with `sample`."""

    data_source: str | None = Field(default=None, description=f"one of {', '.join(SOURCES)}, e.g. files")
    path: str | None = Field(
        default=None,
        description="for `files`: a folder, a glob or a file of Parquet or CSV, or CSV in gz or zip, e.g. prices/*.csv",
    )
    date_format: str | None = Field(
        default=None, description="for `files`: of dates that are text and not ISO, e.g. '%d/%m/%Y'"
    )
    dataset_name: str | None = Field(default=None, description=f"for `hf`: the data set, e.g. {HUB_DATASET}")
    revision: str | None = Field(default=None, description="for `hf`: a branch, a tag or a commit, e.g. main")
    synthetic_variant: str | None = Field(
        default=None, description="for `synthetic`: drift, momentum, risk or null, e.g. drift"
    )
    synthetic_seed: int | None = Field(default=None, description="for `synthetic`: the seed of the market, e.g. 7")
    synthetic_assets: int | None = Field(
        default=None, description="for `synthetic`: how many assets, by default 20, e.g. 50"
    )
    synthetic_sessions: int | None = Field(
        default=None, description="for `synthetic`: sessions, by default 2520, e.g. 1260"
    )
    symbols: list[str] | None = Field(
        default=None, description="only these symbols; `yfinance` needs them, e.g. [AAPL, MSFT]"
    )
    start: str | None = Field(default=None, description="only from this day on, e.g. 2005-01-01")
    end: str | None = Field(default=None, description="only up to this day, e.g. 2022-12-30")
    calendar: str | None = Field(
        default=None,
        description="the exchange whose sessions the days must be, as XNYS or 24/7; auto: of each symbol its own, and auto:XASX "
        "with decisions at the closes of XASX; by default New York, or what the days say where they are not its sessions, "
        "e.g. XLON",
    )
    accept: list[str] | None = Field(
        default=None,
        description="rules and expectations that do not refuse this batch; bad rows stay in quarantine, e.g. [factor_step]",
    )
    whole: bool = Field(
        default=False,
        description="the delivery is all there is: rows that it does not cover end, instead of being kept",
    )
    as_of: str | None = Field(
        default=None,
        description="show the prices as they were at this revision, a number or the start of a commit or hash; fetch nothing, "
        "e.g. '3'",
    )
    max_age_sessions: int | None = Field(
        default=None, description="refuse to go on when the newest session is further behind, e.g. 1"
    )


def make_feed(config: PriceSourceConfig, settings: Settings) -> Feed | None:
    """The feed that a config names, or None if it names no source.

    Raises:
        FinJEPAError: for an unknown source, one that lacks what it needs, or an option that is not of that source.
    """
    name = config.data_source
    if name is not None and name not in SOURCES:
        raise FinJEPAError(f"unknown data source {name!r}; choose one of {', '.join(SOURCES)}")
    for option, owner in _OWNERS.items():
        if getattr(config, option) is not None and name != owner:
            raise FinJEPAError(f"{option} belongs to the source `{owner}`; add --data-source {owner}")
    if name is None:
        if config.symbols or config.start or config.end or config.calendar:
            raise FinJEPAError("symbols, start, end and calendar need a data source; add --data-source")
        return None
    symbols = sorted({symbol.strip().upper() if name == "yfinance" else symbol for symbol in config.symbols or ()})
    if not all(map(str.strip, symbols)):
        raise FinJEPAError("an empty text is no symbol")
    wanted = {"symbols": symbols or None, "start": _day(config.start), "end": _day(config.end)}
    source, options = _make_source(config.model_copy(update=wanted), settings.home / "sources")
    if config.calendar not in (None, AUTO):
        sessions(config.calendar)  # a name that does not exist ends here
    options = {key: value for key, value in ({"data_source": name} | options | wanted).items() if value is not None}
    return Feed(source, options, config.calendar or DEFAULT_CALENDAR, tuple(symbols), wanted["start"], wanted["end"])


def _make_source(config: PriceSourceConfig, folder: Path) -> tuple[PriceSource, dict[str, Any]]:
    """The source, and those options that are its own, completed."""
    match config.data_source:
        case "files":
            if not config.path:
                raise FinJEPAError("the source `files` needs a path: --path FOLDER_OR_GLOB")
            path = os.path.abspath(os.path.expanduser(config.path))
            options = {"path": path, "date_format": config.date_format}
            return FilesSource(path, folder / "files", config.date_format), options
        case "hf":
            name = config.dataset_name or HUB_DATASET
            options = {"dataset_name": name, "revision": config.revision}
            return HubSource(name, folder / "hub", config.revision), options
        case "yfinance":
            if not config.symbols:
                raise FinJEPAError("the source `yfinance` needs symbols: --symbols AAPL,MSFT,SPY")
            return YahooSource(tuple(config.symbols), config.start, config.end, folder / "yfinance"), {}
        case "synthetic":
            given = {option: getattr(config, f"synthetic_{option}") for option in _MARKET}
            market = SyntheticConfig(**{option: value for option, value in given.items() if value is not None})
            options = {f"synthetic_{option}": getattr(market, option) for option in _MARKET}
            return SyntheticSource(market, folder / "synthetic"), options
    return SampleSource(folder / "sample"), {}


def _day(text: str | None) -> str | None:
    try:
        return text and datetime.date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise FinJEPAError(f"{text!r} is not a day; write YYYY-MM-DD") from error
