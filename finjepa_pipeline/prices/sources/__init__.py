"""Where prices come from: one interface, a file for each source."""

import json
from typing import Any

import dagster as dg
from pydantic import Field

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.sources.base import PriceSource, Snapshot, SourceFile
from finjepa_pipeline.prices.sources.files import FilesSource
from finjepa_pipeline.prices.sources.sample import SampleSource
from finjepa_pipeline.settings import Settings

__all__ = ["PriceSource", "PriceSourceConfig", "Snapshot", "SourceFile", "make_source", "remembered_source"]

SOURCES = ("sample", "files")


class PriceSourceConfig(dg.Config):
    """Which prices to ingest. Without a data source the home carries on with what it holds, or with `sample`."""

    data_source: str | None = Field(default=None, description=f"one of {', '.join(SOURCES)}")
    path: str | None = Field(default=None, description="for `files`: a folder, a glob or a file of Parquet or CSV")


def make_source(config: PriceSourceConfig, settings: Settings) -> PriceSource | None:
    """The source that a config names, or None if it names none.

    Raises:
        FinJEPAError: for an unknown source, or one that lacks what it needs.
    """
    if config.data_source is None:
        if config.path is not None:
            raise FinJEPAError("a path was given without a data source; add --data-source files")
        return None
    if config.data_source == "sample":
        return SampleSource(folder=settings.home / "sources" / "sample")
    if config.data_source == "files":
        if not config.path:
            raise FinJEPAError("the source `files` needs a path: --path FOLDER_OR_GLOB")
        return FilesSource(path=config.path)
    raise FinJEPAError(f"unknown data source {config.data_source!r}; choose one of {', '.join(SOURCES)}")


def remembered_source(options_json: str, settings: Settings) -> PriceSource:
    """The source that an earlier ingestion stored (`PriceSource.options`), made again."""
    options: dict[str, Any] = json.loads(options_json)
    source = make_source(PriceSourceConfig(**options), settings)
    assert source is not None  # stored options always name their source
    return source
