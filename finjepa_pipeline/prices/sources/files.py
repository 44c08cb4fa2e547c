"""Parquet or CSV files of the user: a folder, a glob or one file."""

import glob
import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.sources.base import PriceSource, Snapshot, SourceFile, version_of, with_folders
from finjepa_pipeline.prices.sources.reshape import long_files

SUFFIXES = (".parquet", ".csv", ".csv.gz", ".zip")


@dataclass(frozen=True)
class FilesSource(PriceSource):
    """`path` is a folder (all files below it), a file, or a glob of either; what exists is never taken for a pattern.

    Hidden files are passed over; every other file is read or in `Snapshot.unread`. Names that begin with _ are not read: Spark
    and others keep what is no data there. `folder` keeps what had to be unpacked or brought into another shape.
    """

    path: str
    folder: Path
    date_format: str | None = None  # of dates that are text; ISO where None

    @property
    def _place(self) -> str:
        return os.path.abspath(os.path.expanduser(self.path))

    @property
    def place(self) -> str:
        return f"files:{self._place}" + (f" ({self.date_format})" if self.date_format else "")

    @property
    def options(self) -> dict[str, object]:
        declared = {"date_format": self.date_format} if self.date_format else {}
        return {"data_source": "files", "path": self._place, **declared}

    def snapshot(self) -> Snapshot:
        try:
            paths, unread = self._paths()
            files = tuple(SourceFile(str(path), with_folders(str(path), _hash_of(path))) for path in paths)
        except OSError as error:
            raise FinJEPAError(f"cannot read {error.filename}: {error.strerror}") from error
        return Snapshot(version_of(files), files, tuple(map(str, unread)))

    def fetch(self, snapshot: Snapshot) -> list[Path]:
        kept = self.folder / hashlib.sha256(self.place.encode()).hexdigest()[:16]
        return long_files(snapshot.files, kept, self.date_format)

    def still_is(self, snapshot: Snapshot) -> bool:
        return self.snapshot() == snapshot

    def _paths(self) -> tuple[list[Path], list[Path]]:
        """The files that are read and those that are not, sorted."""
        found = [self._place] if os.path.lexists(self._place) else _matches(self._place)
        if not found:
            raise FinJEPAError(
                f"there is nothing at {self._place}; give a folder, a glob or a file ({', '.join(SUFFIXES)})"
            )
        below = [_below(Path(name)) for name in found]
        paths, unread = (sorted({path for part in below for path in part[place]}) for place in (0, 1))
        if unread == [Path(self._place)]:
            raise FinJEPAError(f"{self._place} is none of {', '.join(SUFFIXES)}")
        if not paths:
            raise FinJEPAError(f"no file that ends in {', '.join(SUFFIXES)} in {self._place}; is it the right folder?")
        for path in paths:
            if not path.is_file():
                raise FinJEPAError(f"{path} is not a file that can be read")
            if "\\" in str(path) and glob.has_magic(str(path)):  # which a pattern of DuckDB cannot say
                raise FinJEPAError(f"{path} cannot be read: its name has a backslash and one of * ? [; rename it")
        return paths, unread


def _matches(pattern: str) -> list[str]:
    """What a glob finds; the folders that its beginning names are not patterns where they exist."""
    folder = Path(pattern)
    while not folder.exists():
        folder = folder.parent
    rest = os.path.relpath(pattern, folder)
    return [os.path.join(folder, name) for name in glob.glob(rest, root_dir=folder, recursive=True)]


def _below(place: Path) -> tuple[list[Path], list[Path]]:
    """Of a file itself, or of a folder and those within: what is read, and what is not; links to folders are not followed."""
    if not place.is_dir():
        return ([place], []) if place.name.lower().endswith(SUFFIXES) else ([], [place])
    paths: list[Path] = []
    unread: list[Path] = []
    for folder, folders, names in os.walk(place, onerror=_refuse):
        aside = [name for name in folders if name.startswith("_") or os.path.islink(os.path.join(folder, name))]
        folders[:] = [name for name in folders if name not in aside and not name.startswith(".")]
        unread += [Path(folder, name) for name in aside if not name.startswith(".")]
        for name in names:
            is_read = name.lower().endswith(SUFFIXES) and not name.startswith("_")
            if not name.startswith("."):
                (paths if is_read else unread).append(Path(folder, name))
    return paths, unread


def _refuse(error: OSError) -> None:
    raise error


def _hash_of(path: Path) -> str:
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@cache
def _sha256(path: Path, *signature: int) -> str:
    """SHA-256 of a file's bytes, remembered in the process for as long as the file system says that the file is the same."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
