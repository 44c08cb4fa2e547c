"""The court's tables. What is written replaces what it supersedes in one transaction, so that a rerun adds no row."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from finjepa_pipeline.backtest.engine import Walk
from finjepa_pipeline.warehouse import sql

BLOCKS = ("validation", "test")
_BLOCK = "checkpoint = $checkpoint AND data_version = $data_version AND block = $block"


@dataclass(frozen=True)
class Case:
    """What strategies are judged on: a checkpoint's block under one court, a hash of the conditions of a walk."""

    checkpoint: str
    data_version: str
    block: str
    court: str


def ensure_tables(con: duckdb.DuckDBPyConnection) -> None:
    con.execute(sql("backtest_schema"))


def known_walks(con: duckdb.DuckDBPyConnection, checkpoint: str, data_version: str) -> set[tuple[str, str]]:
    """(court, strategy) of the walks whose returns are kept."""
    query = "SELECT DISTINCT court, strategy FROM main.backtest_returns WHERE checkpoint = ? AND data_version = ?"
    return {(court, strategy) for court, strategy in con.execute(query, [checkpoint, data_version]).fetchall()}


def write_walks(con: duckdb.DuckDBPyConnection, case: Case, walks: Sequence[Walk]) -> int:
    """Put walks into `backtest_returns` and `backtest_decisions`, and what was never judged before into `backtest_trials`.

    Walks of the same block under another court (another universe, say) go: a leaderboard compares like with like.

    Returns:
        Rows written to `backtest_returns`.
    """
    with transaction(con):
        for table in ("backtest_returns", "backtest_decisions"):
            con.execute(f"DELETE FROM main.{table} WHERE {_BLOCK} AND court <> $court", asdict(case))
        for walk in walks:
            window = asdict(case) | {"strategy": walk.strategy}
            for table, columns in (("backtest_returns", _returns(walk)), ("backtest_decisions", _decisions(walk))):
                con.execute(
                    f"DELETE FROM main.{table} WHERE {_BLOCK} AND court = $court AND strategy = $strategy", window
                )
                insert(con, table, window, columns)
            con.execute(sql("backtest_trials"), window | _score(walk))
    return sum(len(walk.dates_T) for walk in walks)


def insert(con: duckdb.DuckDBPyConnection, table: str, constants: dict[str, Any], columns: dict[str, Any]) -> None:
    """Append rows: `columns` are arrays of one length, `constants` are the same in every row."""
    length = len(next(iter(columns.values())))
    repeated = {name: pa.array([value] * length) for name, value in constants.items()}
    con.register("incoming_rows", pa.table({**repeated, **columns}))
    con.execute(f"INSERT INTO main.{table} BY NAME SELECT * FROM incoming_rows")
    con.unregister("incoming_rows")


@contextmanager
def transaction(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """All or nothing."""
    con.begin()
    try:
        yield
    except BaseException:
        con.rollback()
        raise
    con.commit()


def now() -> datetime:
    """UTC without a zone, as the tables hold it."""
    return datetime.now(UTC).replace(tzinfo=None)


def _returns(walk: Walk) -> dict[str, Any]:
    return {
        "date": walk.dates_T,
        "gross_return": walk.gross_T,
        "net_return": walk.net_T,
        "cost": walk.cost_T,
        "turnover": walk.turnover_T,
        "wealth": walk.wealth_T,
        "hedge": walk.hedged_T,
    }


def _decisions(walk: Walk) -> dict[str, Any]:
    decisions, assets = walk.weights_KR.shape
    return {
        "date": np.repeat(walk.decided_K, assets),
        "entity": np.tile(np.array(walk.assets_R, dtype=object), decisions),
        "weight": walk.weights_KR.ravel(),
        "signal": walk.signals_KR.ravel(),
        "held": walk.held_KR.ravel(),
        "hedge": np.repeat(walk.hedges_K, assets),
    }


def _score(walk: Walk) -> dict[str, Any]:
    spread = float(walk.net_T.std(ddof=1))
    return {
        "daily_sharpe": float(walk.net_T.mean()) / spread if spread > 1e-12 else None,
        "n_days": len(walk.net_T),
        "created_at": now(),
    }
