"""The tables of backtests and audits. What is written replaces what it supersedes in one transaction: a rerun adds no row."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from finjepa_pipeline.backtest.engine import StrategyResult
from finjepa_pipeline.backtest.metrics import BENCHMARK, annual_return, sharpe
from finjepa_pipeline.backtest.strategies import not_planners
from finjepa_pipeline.warehouse import insert, now, sql, transaction

# The tests of an audit.
TESTS = {
    "fill_lag": "An order earns nothing before the session after its fill.",
    "label_alignment": "Models are fitted to the returns that follow a decision, no session earlier or later.",
    "future_invariance": "Features, universe and decisions stay when everything is computed again with another future.",
    "permutation": "The order of the assets does not matter.",
    "delay": "What is earned does not depend on a single session.",
    "null_market": "Where there is nothing to find, nothing is found.",
    "known_truth": "Nobody gains more than an oracle of the market's truth.",
}
# Run for every challenger, each night. `known_truth` measures how much a model finds, and takes a market of its own each time.
BEFORE_THE_GATE = ("fill_lag", "label_alignment", "future_invariance", "permutation", "delay", "null_market")
# These find their fault, whatever its size, with one decision; a home that is too short for them has nothing to publish. The
# others compare returns with luck, and a short history may leave them without a result.
EXACT = ("fill_lag", "label_alignment", "future_invariance")
NOT_ENOUGH_DATA = "not enough data"
NOT_RUN = "not run"

_TABLES = ("backtest_returns", "backtest_decisions", "backtest_replays", "backtest_expectations", "forecast_quality")
SHARED = 8  # digits at the beginning of a `setup` that stand for what does not depend on the checkpoint
_BLOCK = "checkpoint = $checkpoint AND data_version = $data_version AND block = $block"
_LOG_CONFIGURATION = """
    INSERT INTO main.backtest_trials BY NAME
    SELECT $setup AS setup, $checkpoint AS checkpoint, $strategy AS strategy, $block AS block, $data_version AS data_version,
        $n_days AS n_days, $created_at AS created_at, $start_date AS start_date, $end_date AS end_date
    WHERE NOT EXISTS (FROM main.backtest_trials WHERE setup = $setup AND strategy = $strategy)
"""
_COPY = f"""
    INSERT INTO main.{{table}} BY NAME SELECT * REPLACE ($checkpoint AS checkpoint, $setup AS setup) FROM main.{{table}}
    WHERE checkpoint = $donor AND data_version = $data_version AND block = $block AND strategy = $strategy
        AND setup[:{SHARED}] = $shared"""
_DATES = f"SELECT list(date ORDER BY date) FROM main.backtest_returns WHERE {_BLOCK} AND setup = $setup AND strategy = $strategy"
# Configurations tried on some of these sessions, whatever the block was called; NULL for what failed. Baselines were chosen
# beforehand and do not count; a result that came out twice was the same configuration.
_TRIED = """
    SELECT excess_sharpe FROM main.backtest_trials
    WHERE NOT list_contains($not_planners, string_split(strategy, ' with ')[-1])
        AND coalesce(start_date <= $last AND end_date >= $first, true)
    QUALIFY excess_sharpe IS NULL OR row_number() OVER (PARTITION BY start_date, end_date, round(excess_sharpe, 12)) = 1
"""


@dataclass(frozen=True)
class BlockKey:
    """Where results belong: a block of a checkpoint, and `setup`, a hash of everything that a result depends on but the
    strategy."""

    checkpoint: str
    data_version: str
    block: str
    setup: str


def status_of(passed: bool | None, text: str) -> str:
    """`passed`, `failed`, `not enough data` or `not run`, of a test and its finding."""
    if passed is None:
        return NOT_ENOUGH_DATA if text.startswith(NOT_ENOUGH_DATA) else NOT_RUN
    return "passed" if passed else "failed"


def known_results(con: duckdb.DuckDBPyConnection, checkpoint: str, data_version: str) -> set[tuple[str, str]]:
    """(setup, strategy) of the results whose returns are stored."""
    query = "SELECT DISTINCT setup, strategy FROM main.backtest_returns WHERE checkpoint = ? AND data_version = ?"
    return {(setup, strategy) for setup, strategy in con.execute(query, [checkpoint, data_version]).fetchall()}


def known_elsewhere(con: duckdb.DuckDBPyConnection, key: BlockKey, strategies: Sequence[str]) -> dict[str, str]:
    """Which of these strategies, which read no checkpoint, have results of the same conditions, and for which checkpoint."""
    query = """
        SELECT strategy, max(checkpoint) FROM main.backtest_returns
        WHERE data_version = ? AND block = ? AND setup[:?] = ? AND checkpoint <> ? AND list_contains(?, strategy) GROUP BY ALL"""
    of = [key.data_version, key.block, SHARED, key.setup[:SHARED], key.checkpoint, list(strategies)]
    return dict(con.execute(query, of).fetchall())


def write_block(
    con: duckdb.DuckDBPyConnection,
    key: BlockKey,
    results: Sequence[StrategyResult],
    borrowed: Mapping[str, str] | None = None,
) -> int:
    """Put the results of a block into the tables, and configurations that were never tried before into `backtest_trials`;
    returns the rows written to `backtest_returns`. Results of the same block under another setup (another universe, say) are
    removed: a leaderboard compares like with like.

    Args:
        borrowed: of `known_elsewhere`: these are copied.
    """
    with transaction(con):
        for table in _TABLES:
            con.execute(f"DELETE FROM main.{table} WHERE {_BLOCK} AND setup <> $setup", asdict(key))
        for strategy, checkpoint in (borrowed or {}).items():
            of = asdict(key) | {"strategy": strategy, "donor": checkpoint, "shared": key.setup[:SHARED]}
            for table in _TABLES[:3]:
                con.execute(_COPY.format(table=table), of)
            [(dates,)] = con.execute(_DATES, asdict(key) | {"strategy": strategy}).fetchall()
            write_configuration(con, key, strategy, np.array(dates, "datetime64[D]"), len(dates))
        for result in results:
            for table, columns in _tables_of(result).items():
                _replace(con, table, key, {"strategy": result.strategy}, columns)
            write_configuration(con, key, result.strategy, result.dates_T, len(result.dates_T))
            for name, qualities in result.forecasts.items():
                rows = [{"measure": measure} | found for measure, found in qualities.items()]
                columns = {column: [or_null(row[column]) for row in rows] for column in rows[0]}
                _replace(con, "forecast_quality", key, {"forecaster": name}, columns)
        con.execute(sql("backtest/score_trials"), {"setup": key.setup, "benchmark": BENCHMARK})
    return sum(len(result.dates_T) for result in results)


def write_configuration(
    con: duckdb.DuckDBPyConnection, key: BlockKey, strategy: str, dates_T: np.ndarray, n_days: int = 0
) -> None:
    """Note that a strategy was tried on these sessions, unless it was before: on none of them where it failed."""
    span = {"start_date": dates_T[0].item(), "end_date": dates_T[-1].item()}
    con.execute(_LOG_CONFIGURATION, asdict(key) | span | {"strategy": strategy, "n_days": n_days, "created_at": now()})


def never_backtested(con: duckdb.DuckDBPyConnection, checkpoints: Path) -> int:
    """How many trainings were begun in this home, finished or not, whose checkpoint was never backtested: each is a configuration
    that was tried. Every training leaves its run folder behind."""
    tested = {name for (name,) in con.execute("SELECT DISTINCT checkpoint FROM main.backtest_trials").fetchall()}
    begun = {folder.name.removesuffix(".run") for folder in checkpoints.glob("*.run")}
    return len(begun - tested)


def most_assets(con: duckdb.DuckDBPyConnection, checkpoint: str, strategy: str) -> int:
    """How many assets the stored backtest of a strategy trades at most, by the end of its `setup`; 20 where none is known."""
    query = "SELECT max_by(setup, date) FROM main.backtest_returns WHERE checkpoint = ? AND strategy = ?"
    [(setup,)] = con.execute(query, [checkpoint, strategy]).fetchall()
    found = re.fullmatch(r"[0-9a-f]+-(\d+)", setup or "")
    return int(found[1]) if found else 20


def tried_ratios(con: duckdb.DuckDBPyConnection, first: date, last: date) -> np.ndarray:
    """Sharpe ratios per session, of the return over 1/N, of all that was ever backtested on some of these sessions; NaN for what
    failed."""
    tried = con.execute(_TRIED, {"first": first, "last": last, "not_planners": not_planners()}).fetchall()
    return np.array([float("nan") if ratio is None else ratio for (ratio,) in tried])


def or_null(value: float) -> float | None:
    """NULL where a number is undefined."""
    return None if value != value else value


def _replace(
    con: duckdb.DuckDBPyConnection, table: str, key: BlockKey, who: dict[str, str], columns: dict[str, Any]
) -> None:
    [name] = who
    where = asdict(key) | who
    con.execute(f"DELETE FROM main.{table} WHERE {_BLOCK} AND setup = $setup AND {name} = ${name}", where)
    insert(con, table, where, columns)


def _tables_of(result: StrategyResult) -> dict[str, dict[str, Any]]:
    """Columns of each table."""
    decisions, assets = result.weights_KR.shape
    tables: dict[str, dict[str, Any]] = {
        "backtest_returns": {
            "date": result.dates_T,
            "gross_return": result.gross_T,
            "net_return": result.net_T,
            "cost": result.cost_T,
            "turnover": result.turnover_T,
            "wealth": result.wealth_T,
            "hedge": result.hedged_T,
        },
        "backtest_decisions": {
            "date": np.repeat(result.decided_K, assets),
            "entity": np.tile(np.array(result.assets_R, dtype=object), decisions),
            "weight": result.weights_KR.ravel(),
            "signal": result.signals_KR.ravel(),
            "held": result.held_KR.ravel(),
            "hedge": np.repeat(result.hedges_K, assets),
        },
    }
    if result.replays:
        tables["backtest_replays"] = {
            "replay": list(result.replays),
            "sharpe": [or_null(float(sharpe(net_T))) for net_T in result.replays.values()],
            "annual_return": [annual_return(net_T) for net_T in result.replays.values()],
        }
    if result.expectations is not None:
        tables["backtest_expectations"] = dict(result.expectations)
    return tables
