"""Parquet or CSV files of the user, in a folder, a glob or one by one; those of common shapes (packed in a zip, wide, of one
symbol) are made long. Columns move then, and values stay as they are: what is no number or no date is judged later.
"""

import csv
import glob
import gzip
import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import polars as pl

from finjepa_model.errors import FinJEPAError
from finjepa_model.features.frame import Label, is_field, name_columns, needs_adj_close, to_long, with_adj_close
from finjepa_pipeline.prices.sources.base import (
    PriceSource,
    Snapshot,
    SourceFile,
    symbol_of_name,
    version_of,
    with_folders,
)

SUFFIXES = (".parquet", ".csv", ".csv.gz", ".zip")
_HEADER_LINES = 3  # at most: fields, symbols, and the name of the index, as pandas writes two levels of columns
_NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class FilesSource(PriceSource):
    """`path`, an absolute one, is a folder (all files below it), a file, or a glob of either; what exists is never a pattern.

    Hidden files are passed over; every other file is read or in `Snapshot.unread`. Names that begin with _ are not read: Spark
    and others keep what is no data there. `folder` keeps what had to be unpacked or brought into another shape.
    """

    path: str
    folder: Path
    date_format: str | None = None  # of dates that are text; ISO where None

    @property
    def place(self) -> str:
        return f"files:{self.path}" + (f" ({self.date_format})" if self.date_format else "")

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
        found = [self.path] if os.path.lexists(self.path) else _matches(self.path)
        if not found:
            raise FinJEPAError(
                f"there is nothing at {self.path}; give a folder, a glob or a file ({', '.join(SUFFIXES)})"
            )
        below = [_below(Path(name)) for name in found]
        paths, unread = (sorted({path for part in below for path in part[place]}) for place in (0, 1))
        if unread == [Path(self.path)]:
            raise FinJEPAError(f"{self.path} is none of {', '.join(SUFFIXES)}")
        if not paths:
            raise FinJEPAError(f"no file that ends in {', '.join(SUFFIXES)} in {self.path}; is it the right folder?")
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


# Shapes


def long_files(files: Sequence[SourceFile], folder: Path, date_format: str | None) -> list[Path]:
    """The files themselves where they are long, and else Parquet files in `folder` with their rows; others there are removed.

    Raises:
        FinJEPAError: if a file cannot be understood, with the nearest guess.
    """
    paths = [path for file in files for path in _opened(Path(file.name), folder / file.sha256[:16])]
    made = [_made_long(path, folder, date_format, place) for place, path in enumerate(paths)]
    kept = {folder / one.relative_to(folder).parts[0] for one in made if one.is_relative_to(folder)}
    for old in folder.glob("*"):
        if old not in kept:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    return made


def _opened(path: Path, folder: Path) -> list[Path]:
    """A file, or the CSV and Parquet files that are packed in it."""
    if not path.name.lower().endswith(".zip"):
        return [path]
    try:
        with zipfile.ZipFile(path) as packed:
            wanted = [name for name in packed.namelist() if name.lower().endswith((".csv", ".parquet"))]
            wanted = sorted(
                name for name in wanted if not Path(name).name.startswith((".", "_")) and "__MACOSX" not in name
            )
            found = [Path(packed.extract(name, folder)) for name in wanted]
    except (OSError, ValueError, zipfile.BadZipFile, RuntimeError) as error:
        raise FinJEPAError(f"{path} cannot be read as zip: {error}") from error
    if not found:
        raise FinJEPAError(f"{path} holds no CSV or Parquet file")
    single = symbol_of_name(str(path)) if len(found) == 1 else None
    return [found[0].rename(found[0].with_name(f"{single}.csv"))] if single and found[0].suffix == ".csv" else found


def _made_long(path: Path, folder: Path, date_format: str | None, place: int) -> Path:
    """The file, or a long one that is made of it; what cannot be read at all is left to the reader, which says why."""
    head = _head(path)
    if head is None:
        return path
    labels, lines = head
    flat = [label for label in labels if isinstance(label, str)]
    try:
        known = {*name_columns(flat), *re.findall(r"/(symbol|date)=[^/]*(?=/)", str(path))}
        if lines < 2 and {"symbol", "date", "close"} <= known and not needs_adj_close(known):
            return path
        long = to_long(_table(path, labels, lines), symbol_of_name(str(path)))
        if {"dividends", "splits"} & set(long.columns):
            long = with_adj_close(long, date_format)
    except FinJEPAError as error:
        one = " (a file of one symbol is called after it, as AAPL.csv)" if "which: add a column" in str(error) else ""
        raise FinJEPAError(f"{path}: {error}{one}") from error
    except pl.exceptions.PolarsError as error:
        raise FinJEPAError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{place}.parquet"
    long.write_parquet(file)
    return file


def _head(path: Path) -> tuple[list[Label], int] | None:
    """The labels of the columns, and how many lines of a CSV file they take."""
    if path.name.lower().endswith(".parquet"):
        try:
            return list(pl.read_parquet_schema(path)), 0
        except (pl.exceptions.PolarsError, OSError):
            return None
    try:
        with _text(path) as lines:
            head = [line for _, line in zip(range(_HEADER_LINES), csv.reader(lines), strict=False)]
    except (OSError, UnicodeError, csv.Error, EOFError):
        return None
    if not head or not head[0]:
        return None
    if len(head) > 1 and len(head[0]) == len(head[1]) > 1 and not any(map(_NUMBER.fullmatch, head[1])):
        pairs = list(zip(head[0][1:], head[1][1:], strict=True))
        if all(map(all, pairs)) and any(all(map(is_field, level)) for level in zip(*pairs, strict=True)):
            last = head[2] if len(head) > 2 else []
            named = bool(last) and not any(last[1:])
            return [last[0] if named else "date", *pairs], 2 + named
    return list(head[0]), 1


def _text(path: Path):
    """A CSV file as text, without the mark that some systems begin it with."""
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _table(path: Path, labels: list[Label], lines: int) -> dict[Label, pl.Series]:
    if not lines:
        return {column.name: column for column in pl.read_parquet(path)}
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise FinJEPAError(f"the column {twice} is there twice; which one is meant?")
    frame = pl.read_csv(path, has_header=False, skip_lines=lines, infer_schema=False, raise_if_empty=False)
    if frame.is_empty():
        return {label: pl.Series([], dtype=pl.String) for label in labels}
    if frame.width != len(labels):
        raise FinJEPAError(f"the first line names {len(labels)} columns, and the lines after it have {frame.width}")
    return dict(zip(labels, frame, strict=True))
