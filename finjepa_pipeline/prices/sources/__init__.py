"""Where prices come from: one interface, a file for each source."""

import datetime

import dagster as dg
from pydantic import Field

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.calendar import AUTO, DEFAULT_CALENDAR, sessions
from finjepa_pipeline.prices.sources.base import (
    Feed,
    PriceSource,
    Snapshot,
    SourceFile,
)
from finjepa_pipeline.prices.sources.builtin import SampleSource, SyntheticSource
from finjepa_pipeline.prices.sources.files import FilesSource
from finjepa_pipeline.prices.sources.hf import HubSource
from finjepa_pipeline.prices.sources.yahoo import YahooSource
from finjepa_pipeline.prices.synthetic import SyntheticConfig
from finjepa_pipeline.settings import Settings

__all__ = ["Feed", "PriceSource", "PriceSourceConfig", "Snapshot", "SourceFile", "make_feed"]

SOURCES = ("sample", "files", "hf", "yfinance", "synthetic")
_OWNERS = {
    "path": "files", "date_format": "files", "dataset_name": "hf", "revision": "hf",
    "synthetic_variant": "synthetic", "synthetic_seed": "synthetic",
    "synthetic_assets": "synthetic", "synthetic_sessions": "synthetic",
}  # fmt: skip
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
    source = _make_source(config, settings)
    symbols = tuple(sorted({_symbol(config, name) for name in config.symbols or ()}))
    start, end = _day(config.start), _day(config.end)
    if source is None:
        if symbols or start or end or config.calendar:
            raise FinJEPAError("symbols, start, end and calendar need a data source; add --data-source")
        return None
    if config.calendar not in (None, AUTO):
        sessions(config.calendar)  # a name that does not exist ends here
    if not all(map(str.strip, symbols)):
        raise FinJEPAError("an empty text is no symbol")
    return Feed(source, config.calendar or DEFAULT_CALENDAR, symbols, start, end)


def _make_source(config: PriceSourceConfig, settings: Settings) -> PriceSource | None:
    name, folder = config.data_source, settings.home / "sources"
    if name is not None and name not in SOURCES:
        raise FinJEPAError(f"unknown data source {name!r}; choose one of {', '.join(SOURCES)}")
    for option, owner in _OWNERS.items():
        if getattr(config, option) is not None and name != owner:
            raise FinJEPAError(f"{option} belongs to the source `{owner}`; add --data-source {owner}")
    if name == "synthetic":
        options = {option.removeprefix("synthetic_"): getattr(config, option) for option in _OWNERS}
        sizes = {name: options[name] for name in ("variant", "seed", "assets", "sessions") if options[name] is not None}
        return SyntheticSource(SyntheticConfig(**sizes), folder / "synthetic")
    if name == "sample":
        return SampleSource(folder / "sample")
    if name == "hf":
        return HubSource(config.dataset_name or HUB_DATASET, folder / "hub", config.revision)
    if name == "yfinance":
        if not config.symbols:
            raise FinJEPAError("the source `yfinance` needs symbols: --symbols AAPL,MSFT,SPY")
        symbols = tuple(sorted({_symbol(config, symbol) for symbol in config.symbols}))
        return YahooSource(symbols, _day(config.start), _day(config.end), folder / "yfinance")
    if name == "files" and not config.path:
        raise FinJEPAError("the source `files` needs a path: --path FOLDER_OR_GLOB")
    return FilesSource(config.path, folder / "files", config.date_format) if config.path else None


def _symbol(config: PriceSourceConfig, name: str) -> str:
    return name.strip().upper() if config.data_source == "yfinance" else name


def _day(text: str | None) -> str | None:
    try:
        return text and datetime.date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise FinJEPAError(f"{text!r} is not a day; write YYYY-MM-DD") from error
