"""What every price source can do, and what makes a feed of it."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finjepa_model.files import to_json
from finjepa_pipeline.prices.calendar import DEFAULT_CALENDAR
from finjepa_pipeline.sql_files import literal


@dataclass(frozen=True)
class SourceFile:
    """A file of a source. `sha256` identifies its content; equal hashes are never read again."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Snapshot:
    """A state of a source: its version (what the outside calls it), its files in the order of reading, and the names of the files
    beside them that are not read."""

    version: str
    files: tuple[SourceFile, ...]
    unread: tuple[str, ...] = field(default=(), compare=False)


class PriceSource(ABC):
    """Looks first (`snapshot`, cheap), fetches only what is new (`fetch`)."""

    @property
    @abstractmethod
    def place(self) -> str:
        """The source and where it is, such as `files:/data/prices`."""

    @property
    @abstractmethod
    def options(self) -> dict[str, object]:
        """The fields of `PriceSourceConfig` that make this source again."""

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """The present state.

        Raises:
            FinJEPAError: if the source cannot be read.
        """

    @abstractmethod
    def fetch(self, snapshot: Snapshot) -> list[Path]:
        """Local Parquet or CSV files with the content of a snapshot, in its order.

        Raises:
            FinJEPAError: if one cannot be had.
        """

    def still_is(self, snapshot: Snapshot) -> bool:
        """Whether what `fetch` gave still has the content that `snapshot` promised; always, where nobody else writes."""
        return True


@dataclass(frozen=True)
class PriceFilter:
    """Which rows of a source are wanted; pushed down into the scan. `start` and `end` are ISO days, both included."""

    symbols: tuple[str, ...] = ()
    start: str | None = None
    end: str | None = None

    @property
    def options(self) -> dict[str, object]:
        options: dict[str, object] = {"start": self.start, "end": self.end, "symbols": list(self.symbols) or None}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def label(self) -> str:
        """Distinguishes feeds of the same place; empty for all rows."""
        parts = []
        if self.symbols:
            listed = ", ".join(self.symbols)
            tag = hashlib.sha256(listed.encode()).hexdigest()[:8]
            parts.append(listed if len(self.symbols) <= 5 else f"{len(self.symbols)} symbols {tag}")
        if self.start or self.end:
            parts.append(f"{self.start or ''}..{self.end or ''}")
        return f" ({'; '.join(parts)})" if parts else ""

    def where(self) -> str:
        """The condition in SQL over `symbol` and `date`, a day. A row whose day cannot be read stays, for quarantine."""
        conditions = [f"symbol IN ({', '.join(map(literal, self.symbols))})"] if self.symbols else []
        conditions += [f"(date >= DATE '{self.start}' OR date IS NULL)"] if self.start else []
        conditions += [f"(date <= DATE '{self.end}' OR date IS NULL)"] if self.end else []
        return f"WHERE {' AND '.join(conditions)}" if conditions else ""


@dataclass(frozen=True)
class Feed:
    """Rows of a source that belong together; rows of different feeds never mix."""

    source: PriceSource
    filter: PriceFilter = PriceFilter()
    calendar: str = DEFAULT_CALENDAR

    @property
    def name(self) -> str:
        where = "" if self.calendar == DEFAULT_CALENDAR else f" on {self.calendar}"
        return f"{self.source.place}{self.filter.label}{where}"

    @property
    def options_json(self) -> str:
        return to_json({**self.source.options, **self.filter.options, "calendar": self.calendar}, sort_keys=True)


def with_folders(name: str, sha256: str) -> str:
    """The hash of a file's bytes, and of what the names of its folders may say of its rows."""
    said = re.findall(r"(?:^|/)((?:symbol|date)=[^/]*)(?=/)", name)
    return hashlib.sha256(f"{sha256}{said}".encode()).hexdigest() if said else sha256


def version_of(files: Sequence[SourceFile]) -> str:
    """One hash for a set of files; names do not count, so that the same data elsewhere is the same version."""
    return hashlib.sha256("\n".join(sorted(file.sha256 for file in files)).encode()).hexdigest()
