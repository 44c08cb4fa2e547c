"""Long files as one typed relation in DuckDB, read without passing through Python.

Columns have the names of the schema, or common ones (`name_columns`). What a file says counts, not where it lies: a folder
`symbol=AAPL` or `date=2020-01-02` gives a column only to files that lack it. The day of a time is the one in the zone that it was
written in: the first ten characters of a text, the local day of a Parquet column with a zone. It does not depend on the zone of
the machine. NaN and infinity are missing values, in every format.
"""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import duckdb

from finjepa_model.errors import FinJEPAError
from finjepa_model.features.frame import COLUMNS, name_columns
from finjepa_pipeline.prices.contract import BROKEN_ROW
from finjepa_pipeline.warehouse import file_literal, identifier, literal, sql

PRICES = ("open", "high", "low", "close", "adj_close")
_FLOATS = ("DOUBLE", "FLOAT")
_INTEGERS = tuple(sign + size for sign in ("", "U") for size in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"))
_ZONED = ("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS")
_TIME = r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}.*"
_FOLDER = "in the name of the folder"  # in place of a type: where the column comes from


def scan_sql(
    con: duckdb.DuckDBPyConnection, paths: Sequence[Path], where: str = "", date_format: str | None = None
) -> str:
    """A SELECT over `paths` with the columns of `sql/prices/scan.sql`, in the order of the files.

    Args:
        date_format: of dates that are text; ISO where None.

    Raises:
        FinJEPAError: if a file cannot be read or lacks a column that it must have.
    """
    described = [(_columns(con, path, _kind(path)), _kind(path), path) for path in paths]
    # Neighbours with the same columns are read by one scan; the order of the files is kept.
    groups = itertools.groupby(described, key=lambda one: one[:2])
    return "\nUNION ALL\n".join(
        _group_sql(columns, kind, [path for *_, path in files], where, date_format) for (columns, kind), files in groups
    )


def _kind(path: Path) -> str:
    name = path.name.lower()
    return "gzip" if name.endswith(".csv.gz") else "csv" if name.endswith(".csv") else "parquet"


def _columns(con: duckdb.DuckDBPyConnection, path: Path, kind: str) -> dict[str, tuple[str, str]]:
    """Of the columns of a file that belong to the schema, by name there: its name in the file, and its DuckDB type; of a zoned
    time, its zone as well."""
    if path.is_file() and not path.stat().st_size:
        raise FinJEPAError(f"{path} is empty; remove it or write it again")
    try:
        described = con.execute(f"DESCRIBE SELECT * FROM {_reader(kind, [path])}").fetchall()
    except duckdb.Error as error:
        raise FinJEPAError(f"{path} cannot be read as {kind}: {plain(error)}") from error
    types = {str(row[0]): str(row[1]) for row in described}
    lower = {name.lower() for name in types}
    try:
        found = {name: (column, types[column]) for name, column in name_columns(types).items() if name in COLUMNS}
    except FinJEPAError as error:
        raise FinJEPAError(f"{path}: {error}") from error
    twice = [column for column, _ in found.values() if f"{column.lower()}_1" in lower]
    if twice:
        raise FinJEPAError(f"{path} has the column {twice[0]} twice; which one is meant?")
    for name in ("symbol", "date"):
        if name not in found and re.search(_folder(name), str(path)):
            found[name] = name, _FOLDER
    missing = [name for name in ("symbol", "date", "close") if name not in found]
    if missing:
        raise FinJEPAError(
            f"{path} lacks the column {missing[0]}; needed are symbol, date and close, and there may be open, high, low, volume "
            f"and adj_close; it has {', '.join(types)}"
        )
    column, kind = found["date"]
    if kind in _ZONED:
        found["date"] = column, f"{_ZONED[0]} {_zone(path, column)}"
    return {name: found[name] for name in COLUMNS if name in found}


def _group_sql(
    columns: dict[str, tuple[str, str]], kind: str, paths: Sequence[Path], where: str, date_format: str | None
) -> str:
    types = {name: column_type for name, (_, column_type) in columns.items()}

    def number(name: str) -> str:
        if name not in types:
            return "NULL::DOUBLE"
        if name == "volume" and types[name] == "BIGINT":
            return "volume"
        if types[name] in _INTEGERS or types[name].startswith("DECIMAL"):
            return f"{name}::DOUBLE"
        if types[name] in _FLOATS or types[name] == "VARCHAR":
            value = f"TRY_CAST(trim({name}) AS DOUBLE)" if types[name] == "VARCHAR" else f"{name}::DOUBLE"
            # Not by comparisons: DuckDB answers those from the statistics of a Parquet column, which leave NaN out.
            return f"CASE WHEN isfinite({value}) THEN {value} END"
        raise FinJEPAError(f"{paths[0]}: the column {name} holds {types[name]}, which is not a number")

    if types["symbol"] not in ("VARCHAR", _FOLDER):
        raise FinJEPAError(f"{paths[0]}: the column symbol holds {types['symbol']}, which is not text")
    given = [
        f"url_decode(regexp_extract(finjepa_path, {literal('.*' + _folder(name))}, 1)) AS {name}"
        for name in ("symbol", "date")
        if types[name] == _FOLDER
    ]
    texts = [name for name in COLUMNS if types.get(name) == "VARCHAR" and name not in ("symbol", "date")]
    cases = ["WHEN day IS NULL THEN date::VARCHAR"]
    cases += [
        f"WHEN trim({name}) <> '' AND TRY_CAST(trim({name}) AS DOUBLE) IS NULL THEN '{name}=' || {name}"
        for name in texts
    ]
    named = [
        f"{identifier(column)} AS {name}" for name, (column, column_type) in columns.items() if column_type != _FOLDER
    ]
    return sql("prices/scan").format(
        broken=BROKEN_ROW,
        day=_day(types["date"], paths[0], date_format),
        **{name: number(name) for name in (*PRICES, "volume")},
        has_ohlc="true" if {"open", "high", "low"} <= types.keys() else "false",
        has_adj_close="true" if "adj_close" in types else "false",
        unreadable=f"CASE {' '.join(cases)} END",
        files=f"(SELECT {', '.join([*named, *given])} FROM {_reader(kind, paths, filename=bool(given))})",
        wanted=where,
    )


def _day(kind: str, path: Path, date_format: str | None) -> str:
    """SQL for the day of the column `date`, in the zone that it was written in."""
    if kind == "VARCHAR" and date_format is not None:
        return f"TRY_STRPTIME(trim(date), {literal(date_format)})::DATE"
    if kind in ("VARCHAR", _FOLDER):
        plain_day = (
            "strlen(date) = 10 AND date[5] = '-' AND date[8] = '-' THEN TRY_CAST(date AS DATE)"  # the rest is slower
        )
        timed_day = f"regexp_full_match(date, '{_TIME}') THEN TRY_CAST(date[:10] AS DATE)"
        return f"CASE WHEN {plain_day} WHEN {timed_day} END"
    if kind.startswith(_ZONED[0]):
        zone = kind.removeprefix(f"{_ZONED[0]} ")
        offset = re.fullmatch(r"([+-])(\d{2}):?(\d{2})", zone)
        if offset is None:
            return f"(date AT TIME ZONE {literal(zone)})::DATE"
        minutes = int(offset[1] + "1") * (60 * int(offset[2]) + int(offset[3]))
        return f"(date AT TIME ZONE 'UTC' + to_minutes({minutes}))::DATE"
    if kind == "DATE" or kind.startswith("TIMESTAMP"):
        return "TRY_CAST(date AS DATE)"
    raise FinJEPAError(
        f"{path}: the column date holds {kind}, which is not a date; write it as YYYY-MM-DD or as a timestamp"
    )


def _zone(path: Path, column: str) -> str:
    """The zone of a column of a Parquet file: UTC where its writer named none."""
    import pyarrow.parquet  # only here: DuckDB reads the rest, but does not say the zone

    return pyarrow.parquet.read_schema(path).field(column).type.tz or "UTC"


def _folder(name: str) -> str:
    return f"/{name}=([^/]*)/"


def _reader(kind: str, paths: Sequence[Path], filename: bool = False) -> str:
    names = ", ".join(map(file_literal, paths))
    more = "hive_partitioning=false" + (", filename='finjepa_path'" if filename else "")
    if kind == "parquet":
        return f"read_parquet([{names}], {more})"
    packed = "gzip" if kind == "gzip" else "none"
    return (
        f"read_csv([{names}], header=true, delim=',', quote='\"', escape='\"', all_varchar=true, strict_mode=true, "
        f"null_padding=false, ignore_errors=false, compression='{packed}', auto_detect=true, sample_size=1, {more})"
    )


def plain(error: Exception) -> str:
    """A DuckDB error in one line: of a CSV file with the file, the line and what is wrong there; otherwise its first line."""
    text = str(error).strip() or type(error).__name__
    line = re.search(r"CSV Error on Line: (\d+)", text)
    if line is not None:
        about = text.partition("\n\n")[0].splitlines()  # then follow the options of the reader
        file = re.search(r"^\s*file = (.+)$", text, re.MULTILINE)
        return f"line {line[1]}{f' of {file[1]}' if file else ''}: {about[-1].strip()}"
    first = text.splitlines()[0]
    return (
        first.removeprefix("Invalid Input Error: ").removeprefix("IO Error: ").removeprefix("Invalid Error: ").strip()
    )
