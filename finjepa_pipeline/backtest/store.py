"""The court's tables. What is written replaces what it supersedes in one transaction, so that a rerun adds no row."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.backtest.metrics import BENCHMARK, annual_return, sharpe
from finjepa_pipeline.warehouse import sql

if TYPE_CHECKING:  # with torch behind them, which a schedule or a sensor has no use for
    from finjepa_pipeline.backtest.engine import Walk
    from finjepa_pipeline.backtest.evidence import Expectations
    from finjepa_pipeline.backtest.information import Information

_TABLES = (
    "backtest_returns",
    "backtest_decisions",
    "backtest_replays",
    "backtest_expectations",
    "forecast_quality",
)
_BLOCK = "checkpoint = $checkpoint AND data_version = $data_version AND block = $block"


@dataclass(frozen=True)
class Case:
    """What strategies are judged on: a checkpoint's block under one court, a hash of the conditions of a walk."""

    checkpoint: str
    data_version: str
    block: str
    court: str


def ensure_tables(con: duckdb.DuckDBPyConnection) -> None:
    """Tables of a home that was made before inference had columns go: all but the trials can be made again."""
    found = {
        name
        for (name,) in con.execute(
            "SELECT column_name FROM duckdb_columns() WHERE table_name = 'leaderboard'"
        ).fetchall()
    }
    if found and "dsr" not in found:
        for table in ("leaderboard", "backtest_returns", "backtest_decisions"):
            con.execute(f"DROP TABLE main.{table}")
    con.execute(sql("backtest_schema"))


def known_walks(con: duckdb.DuckDBPyConnection, checkpoint: str, data_version: str) -> set[tuple[str, str]]:
    """(court, strategy) of the walks whose returns are kept."""
    query = "SELECT DISTINCT court, strategy FROM main.backtest_returns WHERE checkpoint = ? AND data_version = ?"
    return {(court, strategy) for court, strategy in con.execute(query, [checkpoint, data_version]).fetchall()}


@dataclass(frozen=True)
class Evidence:
    """What was found of the strategies of a case.

    Attributes:
        expectations: of planners, by strategy.
        replays: returns_TK of the walks, in their order, by replay.
        forecasts: quality by measure, by forecaster.
    """

    walks: "Sequence[Walk]"
    expectations: "Mapping[str, Expectations]" = field(default_factory=dict)
    replays: Mapping[str, np.ndarray] = field(default_factory=dict)
    forecasts: "Mapping[str, Mapping[str, Information]]" = field(default_factory=dict)


def write_walks(con: duckdb.DuckDBPyConnection, case: Case, evidence: Evidence) -> int:
    """Put walks and what was found of them into the tables, and what was never judged before into `backtest_trials`.

    Walks of the same block under another court (another universe, say) go: a leaderboard compares like with like.

    Returns:
        Rows written to `backtest_returns`.
    """
    with transaction(con):
        for table in _TABLES:
            con.execute(f"DELETE FROM main.{table} WHERE {_BLOCK} AND court <> $court", asdict(case))
        for k, walk in enumerate(evidence.walks):
            window = asdict(case) | {"strategy": walk.strategy}
            written = {"backtest_returns": _returns(walk), "backtest_decisions": _decisions(walk)}
            if evidence.replays:
                written["backtest_replays"] = _replays({name: r[:, k] for name, r in evidence.replays.items()})
            if walk.strategy in evidence.expectations:
                written["backtest_expectations"] = _expectations(evidence.expectations[walk.strategy])
            for table, columns in written.items():
                con.execute(
                    f"DELETE FROM main.{table} WHERE {_BLOCK} AND court = $court AND strategy = $strategy", window
                )
                insert(con, table, window, columns)
            con.execute(sql("backtest_trials"), window | _tried(walk.dates_T, len(walk.dates_T)))
        con.execute(sql("score_trials"), {"court": case.court, "benchmark": BENCHMARK})
        for name, qualities in evidence.forecasts.items():
            window = asdict(case) | {"forecaster": name}
            con.execute(
                f"DELETE FROM main.forecast_quality WHERE {_BLOCK} AND court = $court AND forecaster = $forecaster",
                window,
            )
            insert(con, "forecast_quality", window, _qualities(qualities))
    return sum(len(walk.dates_T) for walk in evidence.walks)


def write_failure(con: duckdb.DuckDBPyConnection, case: Case, strategy: str, dates_T: np.ndarray) -> None:
    """A strategy that failed on these sessions counts as tried."""
    con.execute(sql("backtest_trials"), asdict(case) | {"strategy": strategy} | _tried(dates_T, 0))


def insert(con: duckdb.DuckDBPyConnection, table: str, constants: dict[str, Any], columns: dict[str, Any]) -> None:
    """Append rows: `columns` are arrays of one length, `constants` are the same in every row."""
    length = len(next(iter(columns.values())))
    repeated = {name: pa.array([value] * length) for name, value in constants.items()}
    con.register("incoming_rows", pa.table({**repeated, **columns}))
    con.execute(f"INSERT INTO main.{table} BY NAME SELECT * FROM incoming_rows")
    con.unregister("incoming_rows")


def most_assets(con: duckdb.DuckDBPyConnection, checkpoint: str, strategy: str) -> int:
    """How many assets the stored backtest of a strategy trades at most, by the end of its mark; 20 where none is known."""
    ensure_tables(con)
    query = (
        "SELECT max_by(court, date) FROM main.backtest_returns WHERE checkpoint = $checkpoint AND strategy = $strategy"
    )
    [(mark,)] = con.execute(query, {"checkpoint": checkpoint, "strategy": strategy}).fetchall()
    found = re.fullmatch(r"[0-9a-f]+-(\d+)", mark or "")
    return int(found[1]) if found else 20


def best_planner(con: duckdb.DuckDBPyConnection, checkpoint: str, data_version: str) -> str | None:
    """The planner that acts for a checkpoint: that with the best net Sharpe ratio on the validation block; None without one.

    Raises:
        FinJEPAError: if nothing was backtested yet.
    """
    from finjepa_pipeline.backtest.baselines import rival_names  # with torch behind it

    asked = {"checkpoint": checkpoint, "data_version": data_version, "rivals": rival_names()}
    try:
        rows = con.execute(sql("best_planner"), asked).fetchall()
    except duckdb.CatalogException as error:
        raise FinJEPAError("nothing was backtested yet; run `finjepa backtest` first") from error
    return rows[0][0] if rows else None


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


def _returns(walk: "Walk") -> dict[str, Any]:
    return {
        "date": walk.dates_T,
        "gross_return": walk.gross_T,
        "net_return": walk.net_T,
        "cost": walk.cost_T,
        "turnover": walk.turnover_T,
        "wealth": walk.wealth_T,
        "hedge": walk.hedged_T,
    }


def _decisions(walk: "Walk") -> dict[str, Any]:
    decisions, assets = walk.weights_KR.shape
    return {
        "date": np.repeat(walk.decided_K, assets),
        "entity": np.tile(np.array(walk.assets_R, dtype=object), decisions),
        "weight": walk.weights_KR.ravel(),
        "signal": walk.signals_KR.ravel(),
        "held": walk.held_KR.ravel(),
        "hedge": np.repeat(walk.hedges_K, assets),
    }


def _replays(returns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    ratios = [float(sharpe(net_T)) for net_T in returns.values()]
    return {
        "replay": list(returns),
        "sharpe": [None if np.isnan(ratio) else ratio for ratio in ratios],
        "annual_return": [annual_return(net_T) for net_T in returns.values()],
    }


def _expectations(expectations: "Expectations") -> dict[str, Any]:
    return {
        "date": expectations.dates_D,
        "imagined_growth": expectations.imagined_D,
        "imagined_volatility": expectations.volatility_D,
        "realised_growth": expectations.realised_D,
    }


def _qualities(qualities: "Mapping[str, Information]") -> dict[str, Any]:
    columns: dict[str, Any] = {"measure": list(qualities)}
    for name in ("mean", "low", "high", "t", "ratio"):
        values = [getattr(quality, name) for quality in qualities.values()]
        columns[name] = [None if value != value else value for value in values]
    return columns | {"decisions": [quality.decisions for quality in qualities.values()]}


def _tried(dates_T: np.ndarray, n_days: int) -> dict[str, Any]:
    return {
        "n_days": n_days,
        "created_at": now(),
        "start_date": dates_T[0].item(),
        "end_date": dates_T[-1].item(),
    }
