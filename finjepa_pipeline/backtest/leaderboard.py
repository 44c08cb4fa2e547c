"""The leaderboard: every strategy of a court with its metrics, its intervals, and what is left after all that was tried.

Shapes: T sessions, K strategies, N trials.
"""

from dataclasses import asdict
from typing import Any

import duckdb
import numpy as np
import polars as pl

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.backtest.baselines import kind, rival_names
from finjepa_pipeline.backtest.inference import power, sharpe_intervals, superior_predictive_ability
from finjepa_pipeline.backtest.market_view import traded_text
from finjepa_pipeline.backtest.metrics import SESSIONS_PER_YEAR, Exposure, exposure, measure, months_better
from finjepa_pipeline.backtest.overfitting import (
    deflated_sharpe,
    effective_trials,
    overfitting_logits,
    probabilistic_sharpe,
    probability_of_overfitting,
)
from finjepa_pipeline.backtest.replay import COST_GRID
from finjepa_pipeline.backtest.store import ensure_tables, insert, now, transaction
from finjepa_pipeline.backtest.strategies import BENCHMARK
from finjepa_pipeline.warehouse import sql


def traded_assets(con: duckdb.DuckDBPyConnection, checkpoint: str) -> str:
    """How many assets were traded in the test block, of how many; empty where that is not known."""
    rows = con.execute(sql("traded_assets"), {"checkpoint": checkpoint}).fetchall()
    return f"Traded: {traded_text(*rows[0])}." if rows else ""


def build_leaderboard(
    con: duckdb.DuckDBPyConnection,
    checkpoint: str,
    data_version: str,
    *,
    cash_rate: float = 0.0,
    untried: int = 0,
    labels: dict[str, str] | None = None,
) -> bool:
    """Measure every walk that is stored for a checkpoint and write its part of `leaderboard` and `court_inference`.

    Args:
        cash_rate: per year; ratios are of the return over it.
        untried: configurations that were trained or begun and never judged; they count as trials.
        labels: `feed`, `fold` and `run_id` of the rows.

    Returns:
        Whether anything was written: a leaderboard of the same walks is left as it is, unless more was tried since.

    Raises:
        FinJEPAError: if nothing was backtested.
    """
    ensure_tables(con)
    returns = stored_returns(con, checkpoint, data_version)
    if returns.is_empty():
        raise FinJEPAError(f"checkpoint {checkpoint} was not backtested on these prices; run `finjepa backtest` first")
    key = {"checkpoint": checkpoint, "data_version": data_version}
    walks = list(returns.group_by("block", "court", maintain_order=True))
    tried = {keys: _tried_ratios(con, table, untried) for keys, table in walks}
    wanted = {(*keys, len(tried[keys]), strategy) for keys, table in walks for strategy in table["strategy"].unique()}
    if wanted == set(con.execute(sql("measured_walks"), key).fetchall()):
        return False
    with transaction(con):
        for table in ("leaderboard", "court_inference"):
            con.execute(
                f"DELETE FROM main.{table} WHERE checkpoint = $checkpoint AND data_version = $data_version", key
            )
        for (block, court), table in walks:
            case = key | {"block": block, "court": court, "created_at": now()}
            rows, verdict = _judged(con, case, table, cash_rate, tried[block, court])
            insert(con, "leaderboard", case | (labels or {"fold": "single"}), rows)
            insert(con, "court_inference", case, verdict)
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


def _judged(
    con: duckdb.DuckDBPyConnection, case: dict[str, Any], walks: pl.DataFrame, cash_rate: float, trials_N: np.ndarray
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns of the leaderboard, and the one row that is said of the whole table."""
    by_strategy = {str(name): walk for (name,), walk in walks.group_by("strategy", maintain_order=True)}
    names = list(by_strategy)
    net_TK = np.column_stack([walk["net_return"].to_numpy() for walk in by_strategy.values()])
    rows: dict[str, Any] = {"strategy": names, "kind": [kind(name) for name in names]}
    rows |= _measured(by_strategy, cash_rate)
    rows |= _intervals(names, net_TK - cash_rate / SESSIONS_PER_YEAR, trials_N)
    rows |= _exposures(con, case, names)
    rows["break_even_bps"] = _break_even(con, case, names)
    moving = [k for k, name in enumerate(names) if name != "cash"]
    logits_C = overfitting_logits(net_TK[:, moving])
    strength = power(net_TK, names.index(BENCHMARK), names.index(BENCHMARK))
    return rows, {
        "strategies": [len(names)],
        "trials": [len(trials_N)],
        "effective_trials": [_different_bets(con, str(case["court"]))],
        "pbo": [_or_null(probability_of_overfitting(logits_C))],
        "pbo_logits": [logits_C.tolist()],
        "spa_p": [superior_predictive_ability(net_TK, names.index(BENCHMARK))],
        "years": [strength.years],
        "sharpe_error": [strength.error],
    }


def _measured(by_strategy: dict[str, pl.DataFrame], cash_rate: float) -> dict[str, Any]:
    measured = [
        asdict(
            measure(
                walk["net_return"].to_numpy(), walk["gross_return"].to_numpy(), walk["turnover"].to_numpy(), cash_rate
            )
        )
        for walk in by_strategy.values()
    ]
    columns: dict[str, Any] = {name: [_or_null(metrics[name]) for metrics in measured] for name in measured[0]}
    benchmark_T = by_strategy[BENCHMARK]["net_return"].to_numpy()
    columns["months_better"] = [
        months_better(walk["net_return"].to_numpy(), benchmark_T, walk["date"].to_numpy())
        for walk in by_strategy.values()
    ]
    columns["start_date"] = [walk["date"][0] for walk in by_strategy.values()]
    columns["end_date"] = [walk["date"][-1] for walk in by_strategy.values()]
    return columns


def _intervals(names: list[str], excess_TK: np.ndarray, trials_N: np.ndarray) -> dict[str, Any]:
    benchmark = names.index(BENCHMARK)
    against = sharpe_intervals(excess_TK, benchmark)
    rivals = [k for k, name in enumerate(names) if kind(name) == "baseline" and np.isfinite(against.sharpe_K[k])]
    best = max(rivals, key=lambda k: against.sharpe_K[k], default=benchmark)
    against_best = sharpe_intervals(excess_TK, best) if best != benchmark else against
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
        "psr": [probabilistic_sharpe(excess_T) for excess_T in excess_TK.T],
        "dsr": [
            deflated_sharpe(over_T, trials_N, len(trials_N)) for over_T in (excess_TK - excess_TK[:, [benchmark]]).T
        ],
        "detectable": [power(excess_TK, k, benchmark).detectable for k in range(len(names))],
    }
    listed: dict[str, Any] = {name: [_or_null(float(v)) for v in values] for name, values in columns.items()}
    return listed | {"best_baseline": [names[best]] * len(names)}


def _tried_ratios(con: duckdb.DuckDBPyConnection, walks: pl.DataFrame, untried: int) -> np.ndarray:
    """Sharpe ratios per session, of the return over 1/N, of all that was ever tried on some of these sessions; NaN for what
    failed or was never judged."""
    span = {"rivals": rival_names(), "start_date": walks["date"].min(), "end_date": walks["date"].max()}
    tried = con.execute(sql("tried_sharpes"), span).fetchall()
    return np.array([float("nan") if ratio is None else ratio for (ratio,) in tried] + [float("nan")] * untried)


def _different_bets(con: duckdb.DuckDBPyConnection, court: str) -> int:
    """Among what was tried and is still stored on exactly these sessions."""
    table = con.sql(sql("tried_returns"), params={"court": court, "rivals": rival_names()}).pl()
    if table.is_empty():
        return 0
    wide = table.pivot("trial", index="date", values="net_return", aggregate_function="first").drop("date")
    whole = wide.select([name for name in wide.columns if wide[name].null_count() == 0])
    return effective_trials(whole.to_numpy()) if whole.width else 0


def _exposures(con: duckdb.DuckDBPyConnection, case: dict[str, Any], names: list[str]) -> dict[str, Any]:
    keys = {name: case[name] for name in ("checkpoint", "data_version", "block", "court")}
    held = con.sql(sql("held_positions"), params=keys).pl()
    found: list[Exposure] = []
    for name in names:
        mine = held.filter(pl.col("strategy") == name)
        wide = mine.pivot("entity", index="date", values="held", aggregate_function="first").fill_null(0.0)
        hedge = mine.group_by("date", maintain_order=True).agg(pl.col("hedge").first())["hedge"]
        found.append(exposure(wide.drop("date").to_numpy(), hedge.to_numpy()))
    return {
        "effective_n": [_or_null(one.effective_n) for one in found],
        "gross_exposure": [one.gross for one in found],
        "net_exposure": [one.net for one in found],
        "hedged": [one.hedged for one in found],
    }


def _break_even(con: duckdb.DuckDBPyConnection, case: dict[str, Any], names: list[str]) -> list[float | None]:
    """One-way cost at which the annual return is that of 1/N under the same cost, on the line through the two ends of the
    grid; None where it is not between 0 and ten times the highest cost of the grid."""
    keys = {name: case[name] for name in ("checkpoint", "data_version", "block", "court")}
    rows = con.execute(sql("backtest_replays"), keys).fetchall()
    growth = {(strategy, replay): value for strategy, replay, _, value in rows}
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


def _or_null(value: float) -> float | None:
    return None if value != value else value
