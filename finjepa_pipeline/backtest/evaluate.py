"""Judges a checkpoint's planners and the baselines on the validation and the test block, under one court a block."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from finjepa_model.config import FinJEPAConfig
from finjepa_model.errors import FinJEPAError
from finjepa_model.training.panel import Panel
from finjepa_pipeline.backtest.baselines import baselines
from finjepa_pipeline.backtest.engine import Court, walk
from finjepa_pipeline.backtest.finjepa_strategy import FinJEPAStrategy, MarketImagination
from finjepa_pipeline.backtest.store import (
    BLOCKS,
    Case,
    ensure_tables,
    known_walks,
    write_walks,
)
from finjepa_pipeline.backtest.strategies import Strategy
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.run import current_checkpoint
from finjepa_pipeline.warehouse import Warehouse

PROTOCOL = 2  # raise it when a change of the code changes what a walk earns: everything is then judged again


@dataclass(frozen=True)
class BacktestRun:
    """What a call of `run_backtests` did. A walk is one strategy on one block."""

    checkpoint: str
    data_version: str
    strategies: tuple[str, ...]
    blocks: dict[str, tuple[str, str]]  # first and last session
    walked: int
    reused: int
    rows: int  # written to backtest_returns


def run_backtests(
    warehouse: Warehouse,
    checkpoint: Path,
    panel_folder: Path,
    planners: Sequence[str],
    n_assets: int = 20,
    log: Callable[[str], object] = lambda message: None,
) -> BacktestRun:
    """Walk every strategy over both blocks and put the results into the warehouse; what is there already is not done again.

    The warehouse is opened only to look and to write, never while strategies walk.

    Raises:
        FinJEPAError: for an unknown planner, a checkpoint that does not fit the panel, or a history that is too short.
    """
    from finjepa_model.training.splits import history_needed, split_dates

    config = read_config(checkpoint)
    panel = Panel.open(panel_folder)
    data_version = str(panel.manifest["data_version"])
    splits = split_dates(len(panel.dates), config)
    imagination = MarketImagination(checkpoint)
    names = [strategy.name for strategy in (*baselines(), *(FinJEPAStrategy(p, imagination) for p in planners))]
    with warehouse.connect() as con:
        ensure_tables(con)
        known = known_walks(con, checkpoint.name, data_version)

    walked, rows, blocks = 0, 0, {}
    for block in BLOCKS:
        lo, hi = getattr(splits, block)
        court = Court.over(
            panel,
            (lo, hi),
            config.portfolio,
            stride=config.model.stride,
            n_assets=n_assets,
            window=history_needed(config),
        )
        blocks[block] = (str(panel.dates[lo]), str(panel.dates[hi - 1]))
        mark = _hash(PROTOCOL, checkpoint.name, panel.content_hash, n_assets, block)
        missing = [name for name in names if (mark, name) not in known]
        if not missing:
            continue
        # Made anew for each block: a strategy may carry memory from one decision to the next.
        strategies: list[Strategy] = [*baselines(), *(FinJEPAStrategy(p, imagination) for p in planners)]
        strategies = [strategy for strategy in strategies if strategy.name in missing]
        views = court.views()
        if any(isinstance(strategy, FinJEPAStrategy) for strategy in strategies):
            log(f"{block}: imagining the market at {len(views)} decisions")
            imagination.prepare(views)
        walks = []
        for strategy in strategies:
            log(f"{block}: {strategy.name} decides {len(views)} times")
            walks.append(walk(strategy, court, views))
        with warehouse.connect() as con:
            rows += write_walks(con, Case(checkpoint.name, data_version, block, mark), walks)
        walked += len(walks)
    return BacktestRun(
        checkpoint=checkpoint.name,
        data_version=data_version,
        strategies=tuple(names),
        blocks=blocks,
        walked=walked,
        reused=len(BLOCKS) * len(names) - walked,
        rows=rows,
    )


def parse_planners(text: str) -> tuple[str, ...]:
    """Planner names out of a comma list, each once.

    Raises:
        FinJEPAError: for an unknown name or an empty list.
    """
    from finjepa_model.planning import make_planner

    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if not names:
        raise FinJEPAError("no planner was named; try --planner cem,mppi")
    for name in names:
        make_planner(name)
    return names


def checkpoint_folder(settings: Settings, checkpoint: str | None) -> Path:
    """The folder of a checkpoint of this home, the newest one where None.

    Raises:
        FinJEPAError: if there is none.
    """
    if checkpoint is None:
        return current_checkpoint(settings)
    folder = settings.checkpoints / checkpoint
    if not (folder / "config.json").is_file():
        raise FinJEPAError(
            f"there is no checkpoint {checkpoint!r} in {settings.checkpoints}; leave it out for the newest"
        )
    return folder


def read_config(checkpoint: Path) -> FinJEPAConfig:
    """The config of a checkpoint folder.

    Raises:
        FinJEPAError: if there is none.
    """
    try:
        return FinJEPAConfig.from_json((checkpoint / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise FinJEPAError(
            f"there is no checkpoint at {checkpoint}; run `finjepa train` or name another one"
        ) from error


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
