"""Results as CSV or Parquet files, for other programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from finjepa_model.errors import FinJEPAError

_RETURNS = """
    SELECT strategy, block, date, gross_return, net_return, cost, turnover, wealth, hedge FROM main.backtest_returns
    WHERE checkpoint = ? AND data_version = ? ORDER BY ALL"""
_DECISIONS = """
    SELECT strategy, block, date, entity AS asset, weight, signal, held, hedge FROM main.backtest_decisions
    WHERE checkpoint = ? AND data_version = ? ORDER BY ALL"""


def export_path(text: str | None) -> Path | None:
    """Where to write.

    Raises:
        FinJEPAError: if it ends neither in .csv nor in .parquet, or its folder is not there.
    """
    path = Path(text).expanduser() if text else None
    if path is not None and path.suffix not in (".csv", ".parquet"):
        raise FinJEPAError(f"an export ends in .csv or .parquet, not {path.name}")
    if path is not None and not path.parent.is_dir():
        raise FinJEPAError(f"there is no folder {path.parent} to export to")
    return path


def export_backtest(con: duckdb.DuckDBPyConnection, checkpoint: str, data_version: str, path: Path) -> list[Path]:
    """Write the daily returns of every strategy of a backtest, and beside them its decisions, as `<name>-decisions`."""
    beside = path.with_name(f"{path.stem}-decisions{path.suffix}")
    for query, file in ((_RETURNS, path), (_DECISIONS, beside)):
        _write(con.sql(query, params=[checkpoint, data_version]).pl(), file)
    return [path, beside]


def export_decision(decision: Mapping[str, Any], path: Path) -> None:
    """Write a decision, as its JSON file has it, a row for each asset that is held or wanted."""
    names = list(dict.fromkeys((*decision["assets"], *decision["weights"], *decision["held"])))
    columns = {"weight": "weights", "signal": "signals", "position": "positions", "held": "held"}
    values = {name: [decision[of].get(asset, 0) for asset in names] for name, of in columns.items()}
    constants = {name: [decision[name]] * len(names) for name in ("date", "checkpoint", "planner", "hedge")}
    _write(pl.DataFrame({**constants, "asset": names, **values}), path)


def _write(frame: pl.DataFrame, path: Path) -> None:
    frame.write_csv(path) if path.suffix == ".csv" else frame.write_parquet(path)
