"""What every price source can do."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class SourceFile:
    """A file of a source. `sha256` identifies its content; equal hashes are never read again."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Snapshot:
    """A state of a source: its version (what the outside calls it) and its files, in the order of reading."""

    version: str
    files: tuple[SourceFile, ...]


class PriceSource(Protocol):
    """Looks first (`snapshot`, cheap), fetches only what is new (`fetch`)."""

    @property
    def source(self) -> str:
        """Name of the kind of source, such as `files`."""
        ...

    @property
    def feed(self) -> str:
        """The source and its place, such as `files:/data/prices`; rows of different feeds never mix."""
        ...

    @property
    def options(self) -> dict[str, object]:
        """The fields of `PriceSourceConfig` that make this source again."""
        ...

    def snapshot(self) -> Snapshot:
        """The present state.

        Raises:
            FinJEPAError: if the source cannot be read.
        """
        ...

    def fetch(self, files: Sequence[SourceFile]) -> list[Path]:
        """Local Parquet or CSV files with the content of `files`, in the same order.

        Raises:
            FinJEPAError: if one cannot be had.
        """
        ...


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def version_of(files: Sequence[SourceFile]) -> str:
    """One hash for a set of files; names do not count, so that the same data elsewhere is the same version."""
    return hashlib.sha256("\n".join(file.sha256 for file in files).encode()).hexdigest()
