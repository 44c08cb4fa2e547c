"""What every price source can do, and what makes a feed of it."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finjepa_model.files import to_json
from finjepa_pipeline.prices.calendar import DEFAULT_CALENDAR
from finjepa_pipeline.warehouse import literal


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
    """Looks first (`snapshot`, cheap), then fetches (`fetch`). Both raise FinJEPAError where the source cannot be read.

    Attributes:
        place: the source and where it is, such as `files:/data/prices`.
        date_format: of dates that are text; ISO where None.
    """

    date_format: str | None = None

    @property
    @abstractmethod
    def place(self) -> str: ...

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """The present state."""

    @abstractmethod
    def fetch(self, snapshot: Snapshot) -> list[Path]:
        """Local Parquet or CSV files with the content of a snapshot, in its order."""

    def still_is(self, snapshot: Snapshot) -> bool:
        """Whether what `fetch` gave still has the content that `snapshot` promised; always, where nobody else writes."""
        return True


@dataclass(frozen=True)
class Feed:
    """Rows of a source that belong together; rows of different feeds never mix.

    Attributes:
        options: fields of a `PriceSourceConfig` that make the feed again, but for the calendar.
        symbols: those that are wanted; all where empty.
        start, end: ISO days, both included.
    """

    source: PriceSource
    options: Mapping[str, object]
    calendar: str = DEFAULT_CALENDAR
    symbols: tuple[str, ...] = ()
    start: str | None = None
    end: str | None = None

    @property
    def label(self) -> str:
        """Distinguishes feeds of the same place; empty for all rows."""
        listed = ", ".join(self.symbols)
        if len(self.symbols) > 5:
            listed = f"{len(self.symbols)} symbols {hashlib.sha256(listed.encode()).hexdigest()[:8]}"
        days = f"{self.start or ''}..{self.end or ''}" if self.start or self.end else ""
        parts = "; ".join(filter(None, (listed, days)))
        return f" ({parts})" if parts else ""

    @property
    def name(self) -> str:
        where = "" if self.calendar == DEFAULT_CALENDAR else f" on {self.calendar}"
        return f"{self.source.place}{self.label}{where}"

    @property
    def options_json(self) -> str:
        """What makes the feed again: the fields of a `PriceSourceConfig`."""
        return to_json({**self.options, "calendar": self.calendar}, sort_keys=True)

    def where(self) -> str:
        """The condition in SQL over `symbol` and `date`, a day. A row whose day cannot be read stays, for quarantine."""
        conditions = [f"symbol IN ({', '.join(map(literal, self.symbols))})"] if self.symbols else []
        conditions += [f"(date >= DATE '{self.start}' OR date IS NULL)"] if self.start else []
        conditions += [f"(date <= DATE '{self.end}' OR date IS NULL)"] if self.end else []
        return f"WHERE {' AND '.join(conditions)}" if conditions else ""


def symbol_of_name(name: str) -> str | None:
    """The symbol that the name of a file says, as AAPL.csv or BRK-B.csv.gz; capitals only, so that prices.csv says none."""
    found = re.fullmatch(
        r"(?=.*[A-Z])([A-Z0-9][A-Z0-9.^=_-]{0,14}?)\.(?:csv|csv\.gz|zip|parquet)", name.rpartition("/")[2]
    )
    return found[1] if found else None


def with_folders(name: str, sha256: str) -> str:
    """The hash of a file's bytes, and of what its name and those of its folders may say of its rows."""
    said = re.findall(r"(?:^|/)((?:symbol|date)=[^/]*)(?=/)", name)
    said += filter(None, [symbol_of_name(name)])
    return hashlib.sha256(f"{sha256}{said}".encode()).hexdigest() if said else sha256


def version_of(files: Sequence[SourceFile]) -> str:
    """One hash for a set of files; names do not count, so that the same data elsewhere is the same version."""
    return hashlib.sha256("\n".join(sorted(file.sha256 for file in files)).encode()).hexdigest()
