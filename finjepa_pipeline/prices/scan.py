"""Files in the Hub schema as one typed relation in DuckDB, read without passing through Python."""

from collections.abc import Sequence
from pathlib import Path

import duckdb

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.rules import Rule, broken_bits
from finjepa_pipeline.prices.sources.base import PriceFilter
from finjepa_pipeline.warehouse import sql

PRICES = ("open", "high", "low", "close", "adj_close")
COLUMNS = ("symbol", "date", "open", "high", "low", "close", "volume", "adj_close")
_TOGETHER = ("open", "high", "low", "volume")
_NUMBERS = ("DOUBLE", "FLOAT", "BIGINT", "INTEGER", "SMALLINT", "TINYINT", "HUGEINT", "UBIGINT", "UINTEGER")


def scan_sql(con: duckdb.DuckDBPyConnection, paths: Sequence[Path], rules: list[Rule], wanted: PriceFilter) -> str:
    """A SELECT over `paths` with the columns of `sql/price_scan.sql`, in the order of the files.

    Raises:
        FinJEPAError: if a file cannot be read or lacks a column that it must have.
    """
    groups: list[tuple[tuple[tuple[str, str], ...], str, list[Path]]] = []
    for path in paths:
        kind = "csv" if path.suffix.lower() == ".csv" else "parquet"
        columns = tuple(_columns(con, path, kind).items())
        # Neighbours with the same columns are read by one scan; the order of the files is kept.
        if groups and groups[-1][:2] == (columns, kind):
            groups[-1][2].append(path)
        else:
            groups.append((columns, kind, [path]))
    return "\nUNION ALL\n".join(
        _group_sql(dict(columns), kind, files, rules, wanted) for columns, kind, files in groups
    )


def _columns(con: duckdb.DuckDBPyConnection, path: Path, kind: str) -> dict[str, str]:
    """Name to DuckDB type of the columns of a file that belong to the schema."""
    try:
        described = con.execute(f"DESCRIBE SELECT * FROM {_reader(kind, [path])}").fetchall()
    except duckdb.Error as error:
        raise FinJEPAError(f"{path} cannot be read as {kind}: {plain(error)}") from error
    types = {str(row[0]): str(row[1]) for row in described}
    twice = [name for name in COLUMNS if f"{name}_1" in types]
    if twice:
        raise FinJEPAError(f"{path} has the column {twice[0]} twice; which one is meant?")
    missing = [name for name in ("symbol", "date", "close") if name not in types]
    if any(name in types for name in _TOGETHER):  # a source has all of them or, close-only, none
        missing += [name for name in _TOGETHER if name not in types]
    if missing:
        raise FinJEPAError(
            f"{path} lacks the column {missing[0]}; needed are {', '.join(COLUMNS)} "
            "(adj_close may be absent, and a close-only file has none of open, high, low, volume)"
        )
    return {name: types[name] for name in COLUMNS if name in types}


def _group_sql(types: dict[str, str], kind: str, paths: Sequence[Path], rules: list[Rule], wanted: PriceFilter) -> str:
    def number(name: str) -> str:
        if name not in types:
            return "NULL::DOUBLE"
        if types[name] == "VARCHAR":
            return f"TRY_CAST(trim({name}) AS DOUBLE)"
        if name == "volume" and types[name] == "BIGINT":
            return "volume"
        if types[name] in _NUMBERS or types[name].startswith("DECIMAL"):
            return f"{name}::DOUBLE"
        raise FinJEPAError(f"{paths[0]}: the column {name} holds {types[name]}, which is not a number")

    if types["symbol"] != "VARCHAR":
        raise FinJEPAError(f"{paths[0]}: the column symbol holds {types['symbol']}, which is not text")
    if types["date"] == "VARCHAR":
        date = "CASE WHEN date[5] = '-' AND date[8] = '-' THEN TRY_CAST(date AS DATE) END"
    elif types["date"] == "DATE" or types["date"].startswith("TIMESTAMP"):
        date = "TRY_CAST(date AS DATE)"
    else:
        raise FinJEPAError(f"{paths[0]}: the column date holds {types['date']}, which is not a date")

    texts = [name for name in COLUMNS if types.get(name) == "VARCHAR" and name not in ("symbol", "date")]
    cases = [f"WHEN ({date}) IS NULL THEN date::VARCHAR"]
    cases += [f"WHEN trim({name}) <> '' AND {number(name)} IS NULL THEN '{name}=' || {name}" for name in texts]
    return sql("price_scan").format(
        broken=broken_bits(rules),
        date=date,
        **{name: number(name) for name in (*PRICES, "volume")},
        has_ohlc="true" if "open" in types else "false",
        has_adj_close="true" if "adj_close" in types else "false",
        unreadable=f"CASE {' '.join(cases)} END",
        files=_reader(kind, paths) + wanted.where(),
    )


def _reader(kind: str, paths: Sequence[Path]) -> str:
    names = ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths)
    if kind == "parquet":
        return f"read_parquet([{names}])"
    return (
        f"read_csv([{names}], header=true, delim=',', quote='\"', escape='\"', all_varchar=true, strict_mode=true, "
        "null_padding=false, ignore_errors=false, compression='none', auto_detect=true, sample_size=1)"
    )


def plain(error: Exception) -> str:
    """The first sentence of a DuckDB error, for a message of one line."""
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line.removeprefix("Invalid Input Error: ").removeprefix("IO Error: ").removeprefix("Invalid Error: ").strip()
