"""The leaderboard: every strategy of a court with its metrics and intervals.

Shapes: T sessions, K strategies.
"""

from dataclasses import asdict
from typing import Any

import duckdb
import numpy as np
import polars as pl

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.backtest.inference import sharpe_intervals
from finjepa_pipeline.backtest.metrics import SESSIONS_PER_YEAR, measure
from finjepa_pipeline.backtest.store import ensure_tables, insert, now, transaction
from finjepa_pipeline.backtest.strategies import BENCHMARK
from finjepa_pipeline.warehouse import sql


def build_leaderboard(
    con: duckdb.DuckDBPyConnection, checkpoint: str, data_version: str, cash_rate: float = 0.0
) -> bool:
    """Measure every walk that is stored for a checkpoint and write its part of `leaderboard`.

    Args:
        cash_rate: per year; ratios are of the return over it.

    Returns:
        Whether anything was written: a leaderboard of the same walks is left as it is.

    Raises:
        FinJEPAError: if nothing was backtested.
    """
    ensure_tables(con)
    returns = stored_returns(con, checkpoint, data_version)
    if returns.is_empty():
        raise FinJEPAError(f"checkpoint {checkpoint} was not backtested on these prices; run `finjepa backtest` first")
    key = {"checkpoint": checkpoint, "data_version": data_version}
    wanted = set(returns.select("block", "strategy", "court").unique().iter_rows())
    listed = "SELECT block, strategy, court FROM main.leaderboard WHERE checkpoint = ? AND data_version = ?"
    if wanted == set(con.execute(listed, list(key.values())).fetchall()):
        return False
    with transaction(con):
        con.execute("DELETE FROM main.leaderboard WHERE checkpoint = $checkpoint AND data_version = $data_version", key)
        for (block, court), walks in returns.group_by("block", "court", maintain_order=True):
            insert(
                con, "leaderboard", key | {"block": block, "court": court, "created_at": now()}, _rows(walks, cash_rate)
            )
    return True


def leaderboard_rows(con: duckdb.DuckDBPyConnection, checkpoint: str) -> list[dict[str, Any]]:
    """A checkpoint's newest leaderboard as `sql/leaderboard.sql` orders it."""
    ensure_tables(con)
    return con.sql(sql("leaderboard"), params={"checkpoint": checkpoint}).to_arrow_table().to_pylist()


def stored_returns(con: duckdb.DuckDBPyConnection, checkpoint: str, data_version: str) -> pl.DataFrame:
    """The daily returns of every walk, in the order of `sql/backtest_returns.sql`."""
    query = con.sql(sql("backtest_returns"), params={"checkpoint": checkpoint, "data_version": data_version})
    table = pl.from_arrow(query.to_arrow_table())
    assert isinstance(table, pl.DataFrame)
    return table


def _rows(walks: pl.DataFrame, cash_rate: float) -> dict[str, Any]:
    by_strategy = {str(name): walk for (name,), walk in walks.group_by("strategy", maintain_order=True)}
    names = list(by_strategy)
    excess_TK = np.column_stack([walk["net_return"].to_numpy() for walk in by_strategy.values()])
    intervals = sharpe_intervals(excess_TK - cash_rate / SESSIONS_PER_YEAR, names.index(BENCHMARK))
    columns: dict[str, Any] = {"strategy": names}
    measured = [
        asdict(
            measure(
                walk["net_return"].to_numpy(), walk["gross_return"].to_numpy(), walk["turnover"].to_numpy(), cash_rate
            )
        )
        for walk in by_strategy.values()
    ]
    columns |= {name: [_or_null(metrics[name]) for metrics in measured] for name in measured[0]}
    for column, values_K in (
        ("sharpe_low", intervals.low_K),
        ("sharpe_high", intervals.high_K),
        ("excess_sharpe", intervals.excess_K),
        ("excess_low", intervals.excess_low_K),
        ("excess_high", intervals.excess_high_K),
        ("probability_better", intervals.better_K),
    ):
        columns[column] = [_or_null(float(value)) for value in values_K]
    columns["start_date"] = [walk["date"][0] for walk in by_strategy.values()]
    columns["end_date"] = [walk["date"][-1] for walk in by_strategy.values()]
    return columns


def _or_null(value: float) -> float | None:
    return None if value != value else value
