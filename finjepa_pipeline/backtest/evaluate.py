"""Judges a checkpoint's planners beside baselines, controls and strategies of the user, under one court a block."""

import contextlib
import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.batches import (
    checkpoint_blocks,
    checkpoint_splits,
    history_needed,
    shortest_block,
    training_block,
)
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json
from finjepa_pipeline import compute
from finjepa_pipeline.backtest.baselines import baselines, kind
from finjepa_pipeline.backtest.controls import CONTROLS, FITTED, TO_FIT, Controls
from finjepa_pipeline.backtest.docket import Block, Docket
from finjepa_pipeline.backtest.engine import Court, Walk, walk
from finjepa_pipeline.backtest.ensemble import checkpoint_beside
from finjepa_pipeline.backtest.evidence import Expectations, forecast_quality, judge_expectations
from finjepa_pipeline.backtest.finjepa_strategy import FinJEPAStrategy, checkpoints_of
from finjepa_pipeline.backtest.information import Information
from finjepa_pipeline.backtest.market_imagination import MarketImagination
from finjepa_pipeline.backtest.market_view import MarketView
from finjepa_pipeline.backtest.overnight import overnight_returns
from finjepa_pipeline.backtest.replay import attribution, cost_grid
from finjepa_pipeline.backtest.store import (
    Case,
    Evidence,
    ensure_tables,
    known_walks,
    write_failure,
    write_walks,
)
from finjepa_pipeline.backtest.strategies import Strategy
from finjepa_pipeline.backtest.user_strategy import load_strategy
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import checkpoint_here, current_checkpoint, named_checkpoint
from finjepa_pipeline.warehouse import Warehouse

PROTOCOL = 6  # raise it when a change of the code changes what a walk earns: everything is then judged again


@dataclass(frozen=True)
class Hearing:
    """A block on which somebody has to be judged yet, and the court that does it."""

    case: Case
    checkpoint: Path
    docket: Docket
    court: Court = field(compare=False)  # the case has its hash
    names: tuple[str, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        """What a worker process gets: names and numbers. It opens panel and checkpoint itself."""
        court = {name: getattr(self.court, name) for name in Court.__dataclass_fields__ if name != "panel"}
        folders = self.checkpoint.absolute(), self.court.panel.folder.absolute()
        return _reopened, (self.case, *folders, self.docket, court, self.names)

    @property
    def tasks(self) -> list[tuple[str, str]]:
        """What is computed by itself, as (kind, name). Who plans or learns takes longest and comes first: otherwise processes
        stand idle at the end (Graham 1969)."""
        walks = [("walk", name) for name in sorted(self.names, key=lambda name: kind(name) == "baseline")]
        return walks + [("forecast", name) for name in self.forecasters if self.case.block != "validation"]

    @property
    def imagines(self) -> bool:
        """Whether somebody plans in the checkpoint's own world model."""
        return bool(set(self.names) & {*self.docket.planners, "shuffled_actions"})

    @property
    def forecasters(self) -> list[str]:
        """Whose forecasts are compared with what came."""
        controls = [name for name in self.names if name in CONTROLS and name != "shuffled_actions"]
        return ["world_model", *controls] if self.imagines else controls


@dataclass(frozen=True)
class BacktestRun:
    """What a call of `run_backtests` did. A walk is one strategy on one block."""

    checkpoint: str
    feed: str
    data_version: str
    strategies: tuple[str, ...]
    blocks: dict[str, tuple[str, str]]  # first and last session
    walked: int
    reused: int
    rows: int  # written to backtest_returns


class StrategyError(Exception):
    """A strategy raised something: `__cause__`."""

    def __init__(self, hearing: Hearing, name: str):
        super().__init__(name)
        self.hearing, self.name = hearing, name


def run_backtests(
    warehouse: Warehouse,
    checkpoint: Path,
    panel_folder: Path,
    docket: Docket,
    log: Callable[[str], object] = lambda message: None,
    blocks: Sequence[Block] | None = None,
    settings: Settings | None = None,
) -> BacktestRun:
    """Walk every strategy over the blocks and put the results into the warehouse; what is there already is not done again.

    Args:
        blocks: the validation and the test block of the checkpoint where None.
        settings: whose FINJEPA_COMPUTE says where strategies walk; in this process, one after the other, where None.

    Raises:
        FinJEPAError: for an unknown strategy, a checkpoint that does not fit the panel, or a history that is too short.
    """
    panel = Panel.open(panel_folder)
    blocks = judged_blocks(checkpoint, panel) if blocks is None else blocks
    pending = hearings(warehouse, checkpoint, panel, docket, blocks)
    rows = judge(warehouse, pending, log, settings)
    walked = sum(len(hearing.names) for hearing in pending)
    return BacktestRun(
        checkpoint=checkpoint.name,
        feed=str(panel.manifest["feed"]),
        data_version=str(panel.manifest["data_version"]),
        strategies=tuple(docket.names("test")),
        blocks={b.name: (str(panel.dates[b.start]), str(panel.dates[b.stop - 1])) for b in blocks},
        walked=walked,
        reused=sum(len(docket.names(block.name)) for block in blocks) - walked,
        rows=rows,
    )


def hearings(
    warehouse: Warehouse, checkpoint: Path, panel: Panel, docket: Docket, blocks: Sequence[Block]
) -> list[Hearing]:
    """The blocks on which strategies of the docket have no walk in the warehouse yet."""
    config, data_version = read_config(checkpoint), str(panel.manifest["data_version"])
    _refuse_what_was_seen(checkpoint, panel, docket, blocks)
    if set(docket.controls) & set(FITTED):  # known before anybody walks
        training_block(checkpoint, panel, config, TO_FIT)
    with warehouse.connect() as con:
        ensure_tables(con)
        known = known_walks(con, checkpoint.name, data_version)
        overnight = overnight_returns(con, panel) if docket.fill == "open" else None
    pending = []
    for block in blocks:
        conditions = (docket.n_assets, docket.fill, block.name, block.start, block.stop)
        mark = f"{_hash(PROTOCOL, checkpoint.name, panel.content_hash, *conditions)}-{docket.n_assets}"
        names = tuple(name for name in docket.names(block.name) if (mark, name) not in known)
        if not names:
            continue
        court = Court.over(
            panel,
            (block.start, block.stop),
            config.portfolio,
            stride=config.model.stride,
            n_assets=docket.n_assets,
            window=history_needed(config),
            allowed=block.allowed,
            overnight=overnight,
        )
        pending.append(Hearing(Case(checkpoint.name, data_version, block.name, mark), checkpoint, docket, court, names))
    return pending


def judge(
    warehouse: Warehouse, pending: Sequence[Hearing], log: Callable[[str], object], settings: Settings | None = None
) -> int:
    """Hold the hearings and write what they find; returns the rows written to `backtest_returns`.

    The warehouse is opened only to write, never while strategies walk.
    """
    settings = settings or Settings(home=Path(), compute="local:1")
    rows = 0
    try:
        with contextlib.closing(_judged(settings, pending, log)) as judged:
            for hearing, evidence in judged:
                with warehouse.connect() as con:
                    rows += write_walks(con, hearing.case, evidence)
    except StrategyError as broken:
        with warehouse.connect() as con:
            write_failure(con, broken.hearing.case, broken.name, broken.hearing.court.dates_T)
        raise (broken.__cause__ or broken) from None
    return rows


def _refuse_what_was_seen(checkpoint: Path, panel: Panel, docket: Docket, blocks: Sequence[Block]) -> None:
    """
    Raises:
        FinJEPAError: if a checkpoint of the docket, of an ensemble too, was trained or chosen on sessions of a block.
    """
    others = dict.fromkeys(other for name in docket.planners for other in checkpoints_of(name))
    for folder in (checkpoint, *(checkpoint_beside(checkpoint, other) for other in others)):
        own = checkpoint_blocks(folder, panel)
        for block in blocks:
            first, _ = own["validation" if block.name == "validation" else "test"]
            if panel.dates[block.start] < np.datetime64(first):
                raise FinJEPAError(
                    f"the {block.name} block begins on {panel.dates[block.start]}, and {folder.name} may be judged from {first} "
                    "on, after what it was trained and chosen on; leave it out, or train it on these prices"
                )


class Bench:
    """Makes the strategies of a docket, new ones for each block: a strategy may carry memory from one decision to the
    next."""

    def __init__(self, panel: Panel, imagination: MarketImagination, docket: Docket):
        self.panel, self.imagination = panel, imagination
        self.docket = docket
        self.controls = Controls(panel, imagination)

    def make(self, names: Sequence[str]) -> list[Strategy]:
        """The named strategies."""
        made: dict[str, Strategy] = {strategy.name: strategy for strategy in baselines()}
        made |= {name: self.controls.make(name) for name in self.docket.controls if name in names}
        made |= {name: FinJEPAStrategy(name, self.imagination) for name in self.docket.planners if name in names}
        made |= {strategy.name: strategy for strategy in map(load_strategy, self.docket.specs)}
        return [made[name] for name in names]

    def forecast(self, name: str) -> Callable[[MarketView], np.ndarray]:
        """Expected return of each asset of a view over the next decision step, as a forecaster has it."""
        return self.imagination.forecast if name == "world_model" else self.controls.forecast(name)


def _judged(
    settings: Settings, pending: Sequence[Hearing], log: Callable[[str], object]
) -> Generator[tuple[Hearing, Evidence]]:
    """Every hearing with what was found, in their order; strategies and forecasters are tasks of their own."""
    jobs = [(hearing, *task) for hearing in pending for task in hearing.tasks]
    folders = {folder for hearing in pending for folder in (hearing.checkpoint, hearing.court.panel.folder)}
    with compute.map(settings, judge_one, jobs, folders) as found:
        for hearing in pending:
            block, walked, forecasts = hearing.case.block, {}, {}
            for task, name in hearing.tasks:
                if task == "forecast":
                    forecasts[name] = next(found)
                    continue
                try:
                    walked[name] = next(found)
                except Exception as error:
                    raise StrategyError(hearing, name) from error
                log(f"{block}: {name} has decided {len(hearing.court.decisions)} times")
            walks = [walked[name][0] for name in hearing.names]
            tested = block != "validation"
            yield (
                hearing,
                Evidence(
                    walks,
                    expectations={name: walked[name][1] for name in hearing.names if walked[name][1] is not None},
                    replays={**cost_grid(walks, hearing.court), **attribution(walks, hearing.court)} if tested else {},
                    forecasts=forecasts,
                ),
            )


def judge_one(job: tuple[Hearing, str, str]) -> tuple[Walk, Expectations | None] | dict[str, Information]:
    """The walk of one strategy and what it expected of it, or the quality of one forecaster."""
    hearing, task, name = job
    opened = _opened(hearing)
    if task == "forecast":
        return forecast_quality(opened.bench.forecast(name), opened.court, opened.views)
    (strategy,) = opened.bench.make([name])
    walked = walk(strategy, opened.court, opened.views)
    return walked, judge_expectations(strategy.expected, walked) if isinstance(strategy, FinJEPAStrategy) else None


class _Opened:
    """A hearing in the process that works on it: all of its tasks there share what the checkpoint imagines."""

    def __init__(self, hearing: Hearing):
        self.court = hearing.court
        self.bench = Bench(hearing.court.panel, MarketImagination(hearing.checkpoint), hearing.docket)
        self.views = hearing.court.views()


_opened = lru_cache(maxsize=2)(_Opened)


def _reopened(
    case: Case, checkpoint: Path, panel: Path, docket: Docket, court: dict[str, Any], names: tuple[str, ...]
) -> Hearing:
    opened = Court(panel=_panel(compute.local_folder(panel)), **court)
    return Hearing(case, compute.local_folder(checkpoint), docket, opened, names)


_panel = lru_cache(maxsize=2)(Panel.open)


def judged_blocks(checkpoint: Path, panel: Panel) -> list[Block]:
    """The sessions of a panel on which a checkpoint may be judged: its validation block, by date, where the panel has it, and
    everything from its test block on.

    A block begins where the first asset is eligible with its whole window.

    Raises:
        FinJEPAError: if the panel has too few sessions after those that the checkpoint was trained and chosen on.
    """
    config, splits = read_config(checkpoint), checkpoint_splits(checkpoint, panel)
    least, blocks = shortest_block(config), []
    for name, (first, last) in (("validation", splits.validation), ("test", splits.test)):
        ready = (s for s in range(first, last) if len(panel.eligible_assets(s, history_needed(config))))
        first = next(ready, last)
        if last - first >= least:
            blocks.append(Block(name, first, last))
        elif name == "test":
            raise FinJEPAError(
                f"{checkpoint.name} has {last - first} sessions to be judged on, and {least} are needed: its training and its "
                f"validation end on {checkpoint_blocks(checkpoint, panel)['validation'][1]}, these prices on {panel.dates[-1]}; "
                "ingest newer prices, or train again"
            )
    return blocks


def checkpoint_folder(settings: Settings, checkpoint: str | None) -> Path:
    """The folder of a checkpoint of this home, the newest one where None.

    Raises:
        FinJEPAError: if there is none, or it lies elsewhere or holds other files than this home trained.
    """
    folder = current_checkpoint(settings) if checkpoint is None else checkpoint_here(settings, checkpoint)
    if folder is None or not (folder / "config.json").is_file():
        raise FinJEPAError(
            f"there is no checkpoint {checkpoint!r} in {settings.checkpoints}; leave it out for the newest"
        )
    if named_checkpoint(settings, folder).name != folder.name:
        raise FinJEPAError(
            f"{folder} is not as this home trained it, and results are stored under its id; name a checkpoint of "
            f"{settings.checkpoints}, or train it again"
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
    return hashlib.sha256(to_json(parts).encode()).hexdigest()[:12]
