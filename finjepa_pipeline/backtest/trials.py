"""How much was tried that no leaderboard shows."""

from pathlib import Path

import duckdb

from finjepa_pipeline.backtest.store import ensure_tables


def never_judged(con: duckdb.DuckDBPyConnection, checkpoints: Path) -> int:
    """Trainings that were begun in this home, finished or not, whose checkpoint no court has seen: each is a configuration
    that was tried. Every training leaves its run folder behind."""
    ensure_tables(con)
    judged = {name for (name,) in con.execute("SELECT DISTINCT checkpoint FROM main.backtest_trials").fetchall()}
    begun = {folder.name.removesuffix(".run") for folder in checkpoints.glob("*.run")}
    return len(begun - judged)
