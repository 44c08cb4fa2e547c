"""The leaderboard: every strategy of a setup with its metrics, its intervals, and what is left after all that was tried.

Adding a metric: a field of `metrics.Metrics`, a column of `leaderboard` in sql/backtest/schema.sql with a migration, and a
column of the page in `finjepa_pipeline/report/backtest.py`.

Shapes: T sessions, K strategies, N configurations tried.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import duckdb
import numpy as np
import polars as pl

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.backtest.engine import COST_GRID
from finjepa_pipeline.backtest.inference import (
    deflated_sharpe,
    effective_trials,
    overfitting_logits,
    power,
    probabilistic_sharpe,
    probability_of_overfitting,
    sharpe_intervals,
    superior_predictive_ability,
)
from finjepa_pipeline.backtest.market_view import traded_text
from finjepa_pipeline.backtest.metrics import BENCHMARK, exposure, measure, months_better
from finjepa_pipeline.backtest.results import insert, now, or_null, transaction
from finjepa_pipeline.backtest.strategies import kind, not_planners
from finjepa_pipeline.warehouse import sql

Frames = Mapping[str, pl.DataFrame]  # of backtest_returns, by strategy
_CHECKPOINT = "checkpoint = $checkpoint AND data_version = $data_version"
_BLOCK = f"{_CHECKPOINT} AND block = $block AND setup = $setup"
_RETURNS = f"""
    SELECT block, strategy, date, gross_return, net_return, cost, turnover, wealth, hedge, setup
    FROM main.backtest_returns WHERE {_CHECKPOINT} ORDER BY block, strategy, date
"""
_MEASURED = f"""
    SELECT block, setup, trials, strategy
    FROM main.leaderboard JOIN main.backtest_inference USING (checkpoint, data_version, block, setup) WHERE {_CHECKPOINT}
"""
_HELD = f"""
    SELECT strategy, date, entity, held, hedge FROM main.backtest_decisions WHERE {_BLOCK} ORDER BY strategy, date, entity
"""
# The test block first, the highest Sharpe ratio on top.
_NEWEST = """
    SELECT * EXCLUDE (setup) FROM main.leaderboard
    WHERE checkpoint = $checkpoint AND data_version = (
        SELECT data_version FROM main.leaderboard WHERE checkpoint = $checkpoint ORDER BY created_at DESC LIMIT 1
    )
    ORDER BY block, sharpe DESC NULLS LAST, strategy
"""
# Configurations tried on some of these sessions, whatever the block was called; NULL for what failed. Baselines were chosen
# beforehand and do not count; a result that came out twice was the same configuration.
_TRIED = """
    SELECT excess_sharpe FROM main.backtest_trials
    WHERE NOT list_contains($not_planners, strategy) AND coalesce(start_date <= $end_date AND end_date >= $start_date, true)
    QUALIFY excess_sharpe IS NULL OR row_number() OVER (PARTITION BY start_date, end_date, round(excess_sharpe, 12)) = 1
"""
_TRIED_RETURNS = """
    SELECT date, checkpoint || '/' || strategy || '/' || block AS trial, net_return FROM main.backtest_returns
    WHERE NOT list_contains($not_planners, strategy)
        AND date IN (FROM (SELECT date FROM main.backtest_returns WHERE setup = $setup))
    ORDER BY trial, date
"""


def traded_assets(con: duckdb.DuckDBPyConnection, checkpoint: str) -> str:
    """How many assets were traded in the test block, of how many; empty where that is not known."""
    query = sql("backtest/traded_assets")
    rows = con.execute(query, {"checkpoint": checkpoint}).fetchall()
    return f"Traded: {traded_text(*rows[0])}." if rows else ""


def leaderboard_rows(con: duckdb.DuckDBPyConnection, checkpoint: str) -> list[dict[str, Any]]:
    """A checkpoint's newest leaderboard."""
    return con.sql(_NEWEST, params={"checkpoint": checkpoint}).to_arrow_table().to_pylist()


def stored_returns(con: duckdb.DuckDBPyConnection, checkpoint: str, data_version: str) -> pl.DataFrame:
    """The daily returns of every strategy, by block, strategy and date."""
    return con.sql(_RETURNS, params={"checkpoint": checkpoint, "data_version": data_version}).pl()


def build_leaderboard(
    con: duckdb.DuckDBPyConnection,
    checkpoint: str,
    data_version: str,
    *,
    untried: int = 0,
    labels: dict[str, str] | None = None,
) -> bool:
    """Measure every stored result of a checkpoint and write its part of `leaderboard` and `backtest_inference`.

    Args:
        untried: configurations that were trained or begun and never backtested; they count as tried.
        labels: `feed`, `fold` and `run_id` of the rows.

    Returns:
        Whether anything was written: a leaderboard of the same results is left as it is, unless more was tried since.

    Raises:
        FinJEPAError: if nothing was backtested.
    """
    returns = stored_returns(con, checkpoint, data_version)
    if returns.is_empty():
        raise FinJEPAError(f"checkpoint {checkpoint} was not backtested on these prices; run `finjepa backtest` first")
    key = {"checkpoint": checkpoint, "data_version": data_version}
    blocks = list(returns.group_by("block", "setup", maintain_order=True))
    tried = {keys: _tried_ratios(con, table, untried) for keys, table in blocks}
    wanted = {(*keys, len(tried[keys]), strategy) for keys, table in blocks for strategy in table["strategy"].unique()}
    if wanted == set(con.execute(_MEASURED, key).fetchall()):
        return False
    with transaction(con):
        for table in ("leaderboard", "backtest_inference"):
            con.execute(f"DELETE FROM main.{table} WHERE {_CHECKPOINT}", key)
        for (block, setup), table in blocks:
            frames = {str(name): frame for (name,), frame in table.group_by("strategy", maintain_order=True)}
            of_block = key | {"block": block, "setup": setup}
            created = of_block | {"created_at": now()}
            rows = _rows(con, of_block, frames, tried[block, setup])
            insert(con, "leaderboard", created | (labels or {"fold": "single"}), rows)
            insert(con, "backtest_inference", created, _statistics(con, str(setup), frames, len(tried[block, setup])))
    return True


def _rows(
    con: duckdb.DuckDBPyConnection, of_block: dict[str, Any], frames: Frames, tried_N: np.ndarray
) -> dict[str, Any]:
    """Columns of the leaderboard."""
    names = list(frames)
    columns: dict[str, Any] = {"strategy": names, "kind": [kind(name) for name in names]}
    measured = [
        asdict(measure(*(frame[part].to_numpy() for part in ("net_return", "gross_return", "turnover"))))
        for frame in frames.values()
    ]
    columns |= {name: [or_null(metrics[name]) for metrics in measured] for name in measured[0]}
    columns["months_better"] = [
        months_better(
            frame["net_return"].to_numpy(), frames[BENCHMARK]["net_return"].to_numpy(), frame["date"].to_numpy()
        )
        for frame in frames.values()
    ]
    columns["start_date"] = [frame["date"][0] for frame in frames.values()]
    columns["end_date"] = [frame["date"][-1] for frame in frames.values()]
    columns |= _intervals(names, _net(frames), tried_N)
    columns |= _exposures(con, of_block, names)
    return columns | {"break_even_bps": _break_even(con, of_block, names)}


def _statistics(con: duckdb.DuckDBPyConnection, setup: str, frames: Frames, tried: int) -> dict[str, Any]:
    """The one row of the whole table."""
    names, net_TK = list(frames), _net(frames)
    benchmark = names.index(BENCHMARK)
    logits_C = overfitting_logits(net_TK[:, [k for k, name in enumerate(names) if name != "cash"]])
    strength = power(net_TK, benchmark, benchmark)
    return {
        "strategies": [len(names)],
        "trials": [tried],
        "effective_trials": [_different_bets(con, setup)],
        "pbo": [or_null(probability_of_overfitting(logits_C))],
        "pbo_logits": [logits_C.tolist()],
        "spa_p": [superior_predictive_ability(net_TK, benchmark)],
        "years": [strength.years],
        "sharpe_error": [strength.error],
    }


def _net(frames: Frames) -> np.ndarray:
    return np.column_stack([frame["net_return"].to_numpy() for frame in frames.values()])


def _intervals(names: list[str], net_TK: np.ndarray, tried_N: np.ndarray) -> dict[str, Any]:
    benchmark = names.index(BENCHMARK)
    against = sharpe_intervals(net_TK, benchmark)
    baselines = [k for k, name in enumerate(names) if kind(name) == "baseline" and np.isfinite(against.sharpe_K[k])]
    best = max(baselines, key=lambda k: against.sharpe_K[k], default=benchmark)
    against_best = sharpe_intervals(net_TK, best) if best != benchmark else against
    over_KT = (net_TK - net_TK[:, [benchmark]]).T
    columns = {
        "sharpe_low": against.low_K,
        "sharpe_high": against.high_K,
        "excess_sharpe": against.excess_K,
        "excess_low": against.excess_low_K,
        "excess_high": against.excess_high_K,
        "probability_better": against.better_K,
        "best_excess": against_best.excess_K,
        "best_excess_low": against_best.excess_low_K,
        "best_excess_high": against_best.excess_high_K,
        "psr": [probabilistic_sharpe(net_T) for net_T in net_TK.T],
        "dsr": [deflated_sharpe(over_T, tried_N, len(tried_N)) for over_T in over_KT],
        "detectable": [power(net_TK, k, benchmark).detectable for k in range(len(names))],
    }
    listed: dict[str, Any] = {name: [or_null(float(v)) for v in values] for name, values in columns.items()}
    return listed | {"best_baseline": [names[best]] * len(names)}


def _tried_ratios(con: duckdb.DuckDBPyConnection, returns: pl.DataFrame, untried: int) -> np.ndarray:
    """Sharpe ratios per session, of the return over 1/N, of all that was ever tried on some of these sessions; NaN for what
    failed or was never backtested."""
    span = {"start_date": returns["date"].min(), "end_date": returns["date"].max()}
    tried = con.execute(_TRIED, span | {"not_planners": not_planners()}).fetchall()
    return np.array([float("nan") if ratio is None else ratio for (ratio,) in tried] + [float("nan")] * untried)


def _different_bets(con: duckdb.DuckDBPyConnection, setup: str) -> int:
    """Among what was tried and is still stored on exactly these sessions."""
    table = con.sql(_TRIED_RETURNS, params={"setup": setup, "not_planners": not_planners()}).pl()
    if table.is_empty():
        return 0
    wide = table.pivot("trial", index="date", values="net_return", aggregate_function="first").drop("date")
    whole = wide.select([name for name in wide.columns if wide[name].null_count() == 0])
    return effective_trials(whole.to_numpy()) if whole.width else 0


def _exposures(con: duckdb.DuckDBPyConnection, of_block: dict[str, Any], names: list[str]) -> dict[str, Any]:
    held = con.sql(_HELD, params=of_block).pl()
    found = []
    for name in names:
        mine = held.filter(pl.col("strategy") == name)
        wide = mine.pivot("entity", index="date", values="held", aggregate_function="first").fill_null(0.0)
        hedge = mine.group_by("date", maintain_order=True).agg(pl.col("hedge").first())["hedge"]
        found.append(exposure(wide.drop("date").to_numpy(), hedge.to_numpy()))
    return {
        "effective_n": [or_null(one.effective_n) for one in found],
        "gross_exposure": [one.gross for one in found],
        "net_exposure": [one.net for one in found],
        "hedged": [one.hedged for one in found],
    }


def _break_even(con: duckdb.DuckDBPyConnection, of_block: dict[str, Any], names: list[str]) -> list[float | None]:
    """One-way cost at which the annual return is that of 1/N under the same cost, on the line through the two ends of the
    grid; None where it is not between 0 and ten times the highest cost of the grid."""
    query = f"SELECT strategy, replay, annual_return FROM main.backtest_replays WHERE {_BLOCK}"
    growth = {(strategy, replay): value for strategy, replay, value in con.execute(query, of_block).fetchall()}
    low, high = (f"cost_{bps:g}" for bps in (COST_GRID[0], COST_GRID[-1]))
    found: list[float | None] = []
    for name in names:
        if name == BENCHMARK or (name, low) not in growth or (BENCHMARK, low) not in growth:
            found.append(None)
            continue
        gap_low, gap_high = (growth[name, cost] - growth[BENCHMARK, cost] for cost in (low, high))
        reachable = gap_low > 0 and gap_low > gap_high and gap_low / (gap_low - gap_high) <= 10
        found.append(COST_GRID[-1] * gap_low / (gap_low - gap_high) if reachable else None)
    return found
