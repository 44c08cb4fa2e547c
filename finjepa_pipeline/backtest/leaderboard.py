"""The leaderboard: every strategy of a setup with its metrics, its intervals, and what is left after all that was tried; who acts
by it; and what the pages of the backtest show of it.

Adding a metric: a line of `metrics.measure`, a column of `leaderboard` in sql/backtest/schema.sql with a migration, and a
column of the page in `finjepa_pipeline/report/backtest.py`.

Shapes: T sessions, K strategies, N configurations tried.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl

from finjepa_model.errors import FinJEPAError
from finjepa_model.market_view import traded_text
from finjepa_model.planner_strategies import planner_of
from finjepa_pipeline.backtest import inference, metrics
from finjepa_pipeline.backtest.engine import COST_GRID
from finjepa_pipeline.backtest.metrics import BENCHMARK, SHORTEST
from finjepa_pipeline.backtest.results import or_null, status_of, tried_ratios
from finjepa_pipeline.backtest.strategies import kind, not_planners
from finjepa_pipeline.prices import current_revision
from finjepa_pipeline.prices.contract import quality_summary
from finjepa_pipeline.report.backtest import BacktestReport
from finjepa_pipeline.warehouse import insert, now, sql, transaction

Frames = Mapping[str, pl.DataFrame]  # of backtest_returns, by strategy
_CHECKPOINT = "checkpoint = $checkpoint AND data_version = $data_version"
_BLOCK = f"{_CHECKPOINT} AND block = $block AND setup = $setup"
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
_TRIED_RETURNS = """
    SELECT date, checkpoint || '/' || strategy || '/' || block AS trial, net_return FROM main.backtest_returns
    WHERE NOT list_contains($not_planners, string_split(strategy, ' with ')[-1])
        AND date IN (FROM (SELECT date FROM main.backtest_returns WHERE setup = $setup))
    ORDER BY trial, date
"""
_TESTED = """
    SELECT strategy, date, net_return FROM main.backtest_returns
    WHERE checkpoint = $checkpoint AND data_version = $data_version AND block = 'validation'
        AND NOT list_contains($not_planners, string_split(strategy, ' with ')[-1]) AND strategy NOT LIKE '%:%'
    ORDER BY strategy, date
"""
_HISTORY = """
    SELECT leaderboard.*, backtest_inference.pbo, backtest_inference.trials
    FROM main.leaderboard LEFT JOIN main.backtest_inference USING (checkpoint, block, data_version, setup)
    ORDER BY leaderboard.created_at DESC, block, sharpe DESC NULLS LAST, strategy
"""


def traded_assets(con: duckdb.DuckDBPyConnection, checkpoint: str) -> str:
    """How many assets were traded in the test block, of how many; empty where that is not known."""
    query = sql("backtest/traded_assets")
    rows = con.execute(query, {"checkpoint": checkpoint}).fetchall()
    return f"Traded: {traded_text(*rows[0])}." if rows else ""


def leaderboard_rows(con: duckdb.DuckDBPyConnection, checkpoint: str) -> list[dict[str, Any]]:
    """A checkpoint's newest leaderboard."""
    return con.sql(_NEWEST, params={"checkpoint": checkpoint}).to_arrow_table().to_pylist()


def _stored(con: duckdb.DuckDBPyConnection, table: str, checkpoint: str, data_version: str, order: str) -> pl.DataFrame:
    key = {"checkpoint": checkpoint, "data_version": data_version}
    return con.sql(f"FROM main.{table} WHERE {_CHECKPOINT} ORDER BY {order}", params=key).pl()


def build_leaderboard(
    con: duckdb.DuckDBPyConnection,
    checkpoint: str,
    data_version: str,
    *,
    untried: int = 0,
    labels: dict[str, str] | None = None,
) -> None:
    """Measure every stored result of a checkpoint and write its part of `leaderboard` and `backtest_inference`.

    Args:
        untried: configurations that were trained or begun and never backtested; they count as tried.
        labels: `feed`, `fold` and `run_id` of the rows.

    Raises:
        FinJEPAError: if nothing was backtested.
    """
    returns = _stored(con, "backtest_returns", checkpoint, data_version, "block, strategy, date")
    if returns.is_empty():
        raise FinJEPAError(f"checkpoint {checkpoint} was not backtested on these prices; run `finjepa backtest` first")
    key = {"checkpoint": checkpoint, "data_version": data_version}
    with transaction(con):
        for table in ("leaderboard", "backtest_inference"):
            con.execute(f"DELETE FROM main.{table} WHERE {_CHECKPOINT}", key)
        for (block, setup), table in returns.group_by("block", "setup", maintain_order=True):
            frames = {str(name): frame for (name,), frame in table.group_by("strategy", maintain_order=True)}
            of_block, dates = key | {"block": block, "setup": setup}, table["date"]
            tried_N = np.append(tried_ratios(con, dates.min(), dates.max()), [np.nan] * untried)  # type: ignore[arg-type]
            for name, rows, more in (
                ("leaderboard", _rows(con, of_block, frames, tried_N), labels or {"fold": "single"}),
                ("backtest_inference", [_statistics(con, str(setup), frames, len(tried_N))], {}),
            ):
                columns = {column: [row[column] for row in rows] for column in rows[0]}
                insert(con, name, of_block | {"created_at": now()} | more, columns)


def _rows(
    con: duckdb.DuckDBPyConnection, of_block: dict[str, Any], frames: Frames, tried_N: np.ndarray
) -> list[dict[str, Any]]:
    """Of the leaderboard, by strategy."""
    names, net_TK = list(frames), _net(frames)
    benchmark = names.index(BENCHMARK)
    against = inference.sharpe_intervals(net_TK, benchmark)
    ratio_K = against["sharpe"]
    baselines = [k for k, name in enumerate(names) if kind(name) == "baseline" and np.isfinite(ratio_K[k])]
    best = max(baselines, key=lambda k: ratio_K[k], default=benchmark)
    against_best = inference.sharpe_intervals(net_TK, best) if best != benchmark else against
    held = {name: made for (name,), made in con.sql(_HELD, params=of_block).pl().group_by("strategy")}
    query = f"SELECT strategy, replay, annual_return FROM main.backtest_replays WHERE {_BLOCK}"
    growth = {(strategy, replay): value for strategy, replay, value in con.execute(query, of_block).fetchall()}
    rows = []
    for k, (name, frame) in enumerate(frames.items()):
        net_T, over_T = net_TK[:, k], net_TK[:, k] - net_TK[:, benchmark]
        numbers = {
            **metrics.measure(net_T, frame["gross_return"].to_numpy(), frame["turnover"].to_numpy()),
            **metrics.exposure(held[name]),
            **{column: value_K[k] for column, value_K in against.items()},
            "best_excess": against_best["excess_sharpe"][k],
            "best_excess_low": against_best["excess_low"][k],
            "best_excess_high": against_best["excess_high"][k],
            "months_better": metrics.months_better(net_T, net_TK[:, benchmark], frame["date"].to_numpy()),
            "psr": inference.probabilistic_sharpe(net_T),
            "dsr": inference.deflated_sharpe(over_T, tried_N),
            "detectable": inference.detectable_gain(net_T, net_TK[:, benchmark]),
            "break_even_bps": _break_even(growth, name),
        }
        texts = {"strategy": name, "kind": kind(name), "best_baseline": names[best]}
        dates = {"start_date": frame["date"][0], "end_date": frame["date"][-1]}
        rows.append(texts | dates | {column: or_null(float(value)) for column, value in numbers.items()})
    return rows


def _statistics(con: duckdb.DuckDBPyConnection, setup: str, frames: Frames, tried: int) -> dict[str, Any]:
    """The one row of the whole table."""
    names, net_TK = list(frames), _net(frames)
    benchmark = names.index(BENCHMARK)
    logits_C = inference.overfitting_logits(net_TK[:, [k for k, name in enumerate(names) if name != "cash"]])
    return {
        "strategies": len(names),
        "trials": tried,
        "effective_trials": _different_bets(con, setup),
        "pbo": or_null(inference.probability_of_overfitting(logits_C)),
        "pbo_logits": logits_C.tolist(),
        "spa_p": inference.superior_predictive_ability(net_TK, benchmark),
        "years": len(net_TK) / metrics.SESSIONS_PER_YEAR,
        "sharpe_error": inference.sharpe_error(net_TK[:, benchmark]),
    }


def _net(frames: Frames) -> np.ndarray:
    return np.column_stack([frame["net_return"].to_numpy() for frame in frames.values()])


def _different_bets(con: duckdb.DuckDBPyConnection, setup: str) -> int:
    """Among what was tried and is still stored on exactly these sessions."""
    table = con.sql(_TRIED_RETURNS, params={"setup": setup, "not_planners": not_planners()}).pl()
    if table.is_empty():
        return 0
    wide = table.pivot("trial", index="date", values="net_return", aggregate_function="first").drop("date")
    whole = wide.select([name for name in wide.columns if wide[name].null_count() == 0])
    return inference.effective_trials(whole.to_numpy()) if whole.width else 0


def _break_even(growth: Mapping[tuple[str, str], float], name: str) -> float:
    """One-way cost at which the annual return is that of 1/N under the same cost, on the line through the two ends of the
    grid; NaN where it is not between 0 and ten times the highest cost of the grid."""
    ends = [f"cost_{bps:g}" for bps in (COST_GRID[0], COST_GRID[-1])]
    if name == BENCHMARK or (name, ends[0]) not in growth or (BENCHMARK, ends[0]) not in growth:
        return float("nan")
    low, high = (growth[name, cost] - growth[BENCHMARK, cost] for cost in ends)
    reachable = low > 0 and low > high and low / (low - high) <= 10
    return COST_GRID[-1] * low / (low - high) if reachable else float("nan")


@dataclass(frozen=True)
class Acting:
    """Who acts for a checkpoint: the planner that the operator chose, unless another one has evidence that it is worth more.

    FINJEPA_PLANNER names the choice, a planner or one with its utility ("mppi | log_growth - 5*variance"). Evidence is a paired
    interval of net utility on the validation block. It must lie above zero at a level that counts every configuration tried on
    some of these sessions (Bonferroni: 95 % of one, 99.5 % of ten). A Sharpe ratio of so few years tells luck from skill too
    rarely to choose by it.

    Attributes:
        strategy: None where that is open.
        text: why, and what is known of each other planner.
    """

    strategy: str | None
    text: str


def acting_planner(con: duckdb.DuckDBPyConnection, checkpoint: str, data_version: str, chosen: str) -> Acting:
    """By the results on the validation block.

    Args:
        chosen: by the operator. Where it was not tested, the only planner that was is taken for the choice.
    """
    key = {"checkpoint": checkpoint, "data_version": data_version, "not_planners": not_planners()}
    frame = con.sql(_TESTED, params=key).pl()
    tested = {str(name): one for (name,), one in frame.group_by("strategy", maintain_order=True)}
    if not tested:
        return Acting(None, "no planner was backtested on the validation block; run `finjepa backtest`")
    exact = [name for name in tested if name == chosen]
    named = exact or [name for name in tested if planner_of(name) == chosen] or list(tested)
    if len(named) > 1:
        several = f"{', '.join(named)} were backtested, and FINJEPA_PLANNER={chosen!r} does not say which one acts"
        return Acting(None, f"{several}: set it to one of them, or backtest --planner {chosen}")
    [choice] = named
    is_chosen = planner_of(choice) == planner_of(chosen)
    why = "the operator's choice (FINJEPA_PLANNER)" if is_chosen else "the only one tested"
    first, last = frame["date"].min(), frame["date"].max()
    tried = max(len(tried_ratios(con, first, last)), 1)  # type: ignore[arg-type]
    apart = {name: _difference(one, tested[choice], 0.05 / tried) for name, one in tested.items() if name != choice}
    better = {name: found for name, found in apart.items() if found is not None and found.low > 0}
    acts = max(better, key=lambda name: better[name].low, default=choice)
    lines = [f"{choice} acts: {why}." if acts == choice else f"{acts} acts in place of {choice}, {why}, by evidence."]
    lines += [
        f"Net utility of {name} minus that of {choice}: {_in_words(found, tried)}." for name, found in apart.items()
    ]
    return Acting(acts, " ".join(lines))


def _difference(first: pl.DataFrame, second: pl.DataFrame, level: float) -> inference.Interval | None:
    """Of net utility on the dates that both have; None where they are fewer than `SHORTEST`."""
    both = first.join(second, on="date", suffix="_of_second")
    if len(both) < SHORTEST:
        return None
    return inference.utility_difference(both["net_return"].to_numpy(), both["net_return_of_second"].to_numpy(), level)


def _in_words(found: inference.Interval | None, tried: int) -> str:
    if found is None:
        return f"too few sessions in common, {SHORTEST} are needed"
    verdict = "evidence" if found.low > 0 else "no evidence"
    apart = f"{100 * found.mean:+.2f} % a year ({100 * found.low:+.2f} to {100 * found.high:+.2f}"
    return f"{apart}, at the level of {tried} configurations tried), {verdict}"


def report_of(con: duckdb.DuckDBPyConnection, folder: Path, data_version: str, chosen: str) -> BacktestReport:
    """All that the report of a checkpoint on one version of the data shows.

    Args:
        folder: of the checkpoint; the plan of a walk-forward has a name and no folder.
        chosen: the planner that the operator chose.
    """
    checkpoint, trained = folder.name, folder / "metrics.json"

    def stored(table: str, order: str) -> pl.DataFrame:
        return _stored(con, table, checkpoint, data_version, order)

    rows = [_with_skill(row) for row in leaderboard_rows(con, checkpoint)]
    acting = acting_planner(con, checkpoint, data_version, chosen)
    learned = json.loads(trained.read_text(encoding="utf-8")) if trained.is_file() else {}
    remark = metrics.same_return_for_all(learned)
    expectations = stored("backtest_expectations", "strategy, date")
    returns = stored("backtest_returns", "block, strategy, date")
    findings = stored("audit_results", "created_at").to_dicts()
    is_short = any(row["block"] == "test" and row["n_days"] < SHORTEST for row in rows)
    parts = inference.parts_of(returns.filter(block="test"), acting.strategy) if acting.strategy else []
    return BacktestReport(
        headline=" ".join(filter(None, (remark, metrics.headline(rows, acting.strategy)))),
        rows=rows,
        acting=acting.strategy,
        why_acting=acting.text,
        benchmark=BENCHMARK,
        returns=returns,
        too_short=metrics.TOO_SHORT if is_short else None,
        decisions=stored("backtest_decisions", "block, strategy, date, entity"),
        inference=stored("backtest_inference", "block"),
        replays=stored("backtest_replays", "strategy, replay"),
        expectations=expectations,
        calibration=_calibration(expectations),
        forecasts=stored("forecast_quality", "forecaster, measure"),
        audit=[row | {"verdict": status_of(row["passed"], row["finding"])} for row in findings],
        parts=inference.rows_of(parts),
        quality=_quality(con, data_version),
        traded=traded_assets(con, checkpoint),
        cost_grid=COST_GRID,
    )


def leaderboard_history(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The rows of every leaderboard of this home, the newest first."""
    return [_with_skill(row) for row in con.sql(_HISTORY).pl().to_dicts()]


def _with_skill(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"skill": "yes" if metrics.has_skill(row) else "no"}


def _calibration(expectations: pl.DataFrame) -> dict[str, dict[str, float]]:
    columns = ("imagined_growth", "imagined_volatility", "realised_growth")
    test = expectations.filter(block="test").group_by("strategy", maintain_order=True)
    return {str(name): metrics.calibration(*(one[column].to_numpy() for column in columns)) for (name,), one in test}


def _quality(con: duckdb.DuckDBPyConnection, data_version: str) -> list[tuple[str, ...]]:
    """What was found in these prices; nothing where another run shows others by now."""
    revision = current_revision(con)
    found = quality_summary(con) if revision is not None and revision.data_version == data_version else []
    return [(f.rule, f.severity, f"{f.rows:,}", ", ".join(f.examples[:3])) for f in found]
