"""What every price source can do, what makes a feed of it, and the two that need nothing: the sample of real stocks, and a
generated market with known truth."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from finjepa_model.files import folder_written_whole, to_json, written_whole
from finjepa_pipeline.prices.calendar import DEFAULT_CALENDAR
from finjepa_pipeline.prices.synthetic import SyntheticConfig, generate, write_bars
from finjepa_pipeline.warehouse import literal

GENERATOR_VERSION = "2"  # raise it when the same config would give another synthetic market


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


@dataclass(frozen=True)
class SampleSource(PriceSource):
    """The 20 US stocks that ship inside skfolio: real adjusted closes 1990-2022, with no network.

    `folder` keeps the closes as Parquet in the Hub schema (symbol, date, close).
    """

    folder: Path

    @property
    def place(self) -> str:
        return "sample"

    def snapshot(self) -> Snapshot:
        # Named after the package's version: importing skfolio costs seconds, and its data change only with a release.
        name = f"skfolio {version('skfolio')}"
        return Snapshot(name, (SourceFile("closes", hashlib.sha256(name.encode()).hexdigest()),))

    def fetch(self, snapshot: Snapshot) -> list[Path]:
        path = self.folder / f"{snapshot.version.replace(' ', '-')}.parquet"
        if not path.is_file():
            import polars as pl
            from skfolio.datasets import load_sp500_dataset

            wide = pl.from_pandas(load_sp500_dataset().reset_index())
            closes = wide.unpivot(index="Date", variable_name="symbol", value_name="close").select(
                "symbol", pl.col("Date").dt.date().alias("date"), "close"
            )
            with written_whole(path) as beside:
                closes.sort("symbol", "date").write_parquet(beside)
        return [path]


@dataclass(frozen=True)
class SyntheticSource(PriceSource):
    """The market of a config. Its bars lie in a folder below `folder`, named by its hash."""

    config: SyntheticConfig
    folder: Path

    @property
    def place(self) -> str:
        usual = asdict(SyntheticConfig(self.config.variant, self.config.seed))
        sized = "".join(f":{name}={value}" for name, value in asdict(self.config).items() if value != usual[name])
        return f"synthetic:{self.config.variant}:{self.config.seed}{sized}"

    def snapshot(self) -> Snapshot:
        made_of = {"generator": GENERATOR_VERSION, **asdict(self.config)}
        made = hashlib.sha256(to_json(made_of, sort_keys=True).encode()).hexdigest()
        return Snapshot(made, (SourceFile("bars", made),))

    def fetch(self, snapshot: Snapshot) -> list[Path]:
        """Generate the market unless it is there."""
        kept = self.folder / snapshot.version[:16]
        if not kept.exists():
            with folder_written_whole(kept) as beside:
                write_bars(generate(self.config), beside)
        return sorted(kept.glob("bars-*.parquet"))
