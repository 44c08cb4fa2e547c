"""What the pages of the backtest show, as the tables have it."""

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl

from finjepa_pipeline.backtest.claim import TOO_SHORT, has_skill, headline, same_return_for_all
from finjepa_pipeline.backtest.engine import COST_GRID
from finjepa_pipeline.backtest.inference import block_length
from finjepa_pipeline.backtest.leaderboard import leaderboard_rows, stored_returns, traded_assets
from finjepa_pipeline.backtest.metrics import BENCHMARK, SHORTEST, Expectations, calibration
from finjepa_pipeline.backtest.results import best_planner, status_of
from finjepa_pipeline.prices import current_revision
from finjepa_pipeline.prices.quality import quality_summary
from finjepa_pipeline.report.backtest import BacktestReport, shown

_BAND_SAMPLES = 300
_DECISIONS = """
    SELECT block, strategy, date, entity, weight, signal, held, hedge FROM main.backtest_decisions
    WHERE checkpoint = $checkpoint AND data_version = $data_version ORDER BY block, strategy, date, entity
"""
_HISTORY = """
    SELECT leaderboard.*, backtest_inference.pbo, backtest_inference.trials
    FROM main.leaderboard LEFT JOIN main.backtest_inference USING (checkpoint, block, data_version, setup)
    ORDER BY leaderboard.created_at DESC, block, sharpe DESC NULLS LAST, strategy
"""


def report_of(con: duckdb.DuckDBPyConnection, folder: Path, data_version: str) -> BacktestReport:
    """All that the report of a checkpoint on one version of the data shows.

    Args:
        folder: of the checkpoint; the plan of a walk-forward has a name and no folder.
    """
    checkpoint, metrics = folder.name, folder / "metrics.json"
    key = {"checkpoint": checkpoint, "data_version": data_version}

    def all_of(name: str, order: str) -> pl.DataFrame:
        query = f"FROM main.{name} WHERE checkpoint = $checkpoint AND data_version = $data_version ORDER BY {order}"
        return con.sql(query, params=key).pl()

    rows = [_with_skill(row) for row in leaderboard_rows(con, checkpoint)]
    test = [row for row in rows if row["block"] == "test"]
    acting = best_planner(con, checkpoint, data_version)
    returns = stored_returns(con, checkpoint, data_version)
    short = bool(test) and test[0]["n_days"] < SHORTEST
    remark = same_return_for_all(json.loads(metrics.read_text(encoding="utf-8"))) if metrics.is_file() else None
    expectations = all_of("backtest_expectations", "strategy, date")
    return BacktestReport(
        headline=" ".join(filter(None, (remark, headline(rows, acting)))),
        rows=rows,
        acting=acting,
        benchmark=BENCHMARK,
        returns=returns,
        bands=None if short or not test else _bands(returns, shown(test, acting, BENCHMARK)[0]),
        too_short=TOO_SHORT if short else None,
        decisions=con.sql(_DECISIONS, params=key).pl(),
        inference=all_of("backtest_inference", "block"),
        replays=all_of("backtest_replays", "strategy, replay"),
        expectations=expectations,
        calibration=_calibration(expectations),
        forecasts=all_of("forecast_quality", "forecaster, measure"),
        audit=[
            row | {"verdict": status_of(row["passed"], row["finding"])}
            for row in all_of("audit_results", "created_at").to_dicts()
        ],
        quality=_quality(con, data_version),
        traded=traded_assets(con, checkpoint),
        cost_grid=COST_GRID,
    )


def leaderboard_history(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The rows of every leaderboard of this home, the newest first."""
    return [_with_skill(row) for row in con.sql(_HISTORY).pl().to_dicts()]


def bands(returns_T: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pointwise 95 % bands of wealth and of drawdown, [2, T] each, from a stationary bootstrap of the returns."""
    from arch.bootstrap import StationaryBootstrap  # half a second, which a definition need not wait for

    bootstrap = StationaryBootstrap(block_length(returns_T), returns_T, seed=seed)
    samples_ST = np.array([np.asarray(data[0]) for data, _ in bootstrap.bootstrap(_BAND_SAMPLES)])
    wealth_ST = np.cumprod(1 + samples_ST, axis=1)
    drawdown_ST = wealth_ST / np.maximum.accumulate(np.maximum(wealth_ST, 1.0), axis=1) - 1
    wealth_2T, drawdown_2T = (np.percentile(x_ST, [2.5, 97.5], axis=0) for x_ST in (wealth_ST, drawdown_ST))
    return wealth_2T, drawdown_2T


def _bands(returns: pl.DataFrame, strategy: str) -> tuple[np.ndarray, np.ndarray]:
    return bands(returns.filter(block="test", strategy=strategy)["net_return"].to_numpy())


def _with_skill(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"skill": "yes" if has_skill(row) else "no"}


def _calibration(expectations: pl.DataFrame) -> dict[str, dict[str, float]]:
    columns = ("date", "imagined_growth", "imagined_volatility", "realised_growth")
    test = expectations.filter(block="test").group_by("strategy", maintain_order=True)
    return {
        str(name): vars(calibration(Expectations(*(one[column].to_numpy() for column in columns))))
        for (name,), one in test
    }


def _quality(con: duckdb.DuckDBPyConnection, data_version: str) -> list[tuple[str, ...]]:
    """What was found in these prices; nothing where another run shows others by now."""
    revision = current_revision(con)
    found = quality_summary(con) if revision is not None and revision.data_version == data_version else []
    return [(f.rule, f.severity, f"{f.rows:,}", ", ".join(f.examples[:3])) for f in found]
