"""Files of common shapes as long files: packed in a zip, wide, or of one symbol.

Columns move, values stay as they are: what is no number or no date is judged after it, as in any other file.
"""

import csv
import gzip
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from finjepa_model.errors import FinJEPAError
from finjepa_model.features.frame import Label, is_field, name_columns, needs_adj_close, to_long, with_adj_close
from finjepa_pipeline.prices.sources.base import SourceFile, symbol_of_name

_HEADER_LINES = 3  # at most: fields, symbols, and the name of the index, as pandas writes two levels of columns
_NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?")


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
