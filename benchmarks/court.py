"""How long the court takes: all baselines over ten years of the sample, metrics and inference for 20 strategies, PBO, report.

    python benchmarks/court.py PANEL_FOLDER     # of a home that holds the sample: FINJEPA_HOME/panels/<hash>

Prints seconds; imports of skfolio and arch are left out, as a run pays them once.
"""

import importlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np

from finjepa_model.config import preset
from finjepa_model.data.batches import history_needed
from finjepa_model.data.panel import Panel
from finjepa_pipeline.backtest.baselines import baselines
from finjepa_pipeline.backtest.engine import Court, Walk, walk
from finjepa_pipeline.backtest.leaderboard import build_leaderboard
from finjepa_pipeline.backtest.overfitting import overfitting_logits
from finjepa_pipeline.backtest.replay import attribution, cost_grid
from finjepa_pipeline.backtest.store import Case, Evidence, ensure_tables, write_walks

YEARS, STRATEGIES = 10, 20


@contextmanager
def timed(what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    print(f"{what:<60} {time.perf_counter() - started:7.2f} s", flush=True)


def main(folder: Path) -> None:
    for library in ("arch.bootstrap", "skfolio.optimization"):
        importlib.import_module(library)
    panel, config = Panel.open(folder), preset("tiny")
    end = len(panel.dates)
    block = (end - YEARS * 252 - 1, end)
    court = Court.over(
        panel, block, config.portfolio, stride=config.model.stride, n_assets=20, window=history_needed(config)
    )
    views = court.views()
    started = time.perf_counter()
    with timed(f"{len(baselines())} baselines, {len(court.decisions)} decisions over {YEARS} years"):
        walks = [walk(strategy, court, views) for strategy in baselines()]
    walks += [_twin(walks[k], k) for k in range(STRATEGIES - len(walks))]
    with timed(f"costs at five levels and attribution, {len(walks)} strategies"):
        replays = {**cost_grid(walks, court), **attribution(walks, court)}
    con = duckdb.connect()
    ensure_tables(con)
    with timed("write to DuckDB"):
        write_walks(con, Case("c", "d", "test", "k"), Evidence(walks, replays=replays))
    with timed("metrics and inference: intervals, PSR, DSR, PBO, SPA, power"):
        build_leaderboard(con, "c", "d")
    with timed("of which PBO, 12,870 splits"):
        overfitting_logits(np.column_stack([one.net_T for one in walks]))
    print(f"{'all of it':<60} {time.perf_counter() - started:7.2f} s")


def _twin(one: Walk, seed: int) -> Walk:
    """The same decisions with other luck, to fill the table."""
    luck_T = np.random.default_rng(seed).normal(0, 1e-3, len(one.net_T))
    return replace(one, strategy=f"twin_{seed}", net_T=one.net_T + luck_T, gross_T=one.gross_T + luck_T)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
