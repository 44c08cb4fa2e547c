"""Backtests of a checkpoint: who is tested on which block, what of it is not stored yet, and its computation.

A block is a range of sessions. Each strategy on each block is a task of `compute.map`: a process or a node of a cluster opens the
panel and the checkpoint once and keeps them for the tasks that follow.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
from pydantic import Field

from finjepa_model.checkpoint import read_config
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import checkpoint_blocks, checkpoint_splits, history_needed, shortest_block
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json
from finjepa_model.market_view import MarketView
from finjepa_model.planner_strategies import (
    Expectation,
    FinJEPAStrategy,
    MarketImagination,
    checkpoint_beside,
    checkpoints_of,
    strategy_name,
)
from finjepa_model.planners import make_planner
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_pipeline import compute
from finjepa_pipeline.backtest.controls import Controls, possible
from finjepa_pipeline.backtest.engine import BacktestSetup, StrategyResult, decide_at, replayed, simulate
from finjepa_pipeline.backtest.inference import forecast_quality
from finjepa_pipeline.backtest.results import SHARED, BlockKey, known_elsewhere, known_results, write_block
from finjepa_pipeline.backtest.strategies import CONTROLS, WITH, Strategy, baselines, kind, load_strategy, planner_in
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import checkpoint_here, named_checkpoint
from finjepa_pipeline.warehouse import Warehouse

PROTOCOL = 8  # raise it when a change of the code changes the results of a strategy: everything is then computed again
# The validation block only chooses among planners; the other baselines are in the test.
ON_VALIDATION = ("equal_weight", "buy_and_hold", "cash")


class StrategiesConfig(dg.Config):
    """Who is tested, and how."""

    planner: str = Field(default="qp,mppi", description="Comma list of planners; td is experimental, e.g. qp,mppi")
    utility: str | None = Field(
        default=None, description="What they maximise; their own when empty, e.g. log_growth - 5*variance"
    )
    controls: str | None = Field(
        default=None,
        description="Comma list of controls beside every planner (of the test block), or all, or none; by default "
        "all beside the first planner alone, e.g. ewma,ledoit_wolf",
    )
    strategies: list[str] = Field(
        default_factory=list,
        description="Strategies of your own, as module:callable or file.py:callable, e.g. [my_rules.py:decide]",
    )
    n_assets: int = Field(default=20, ge=2, description="Largest universe that is traded, e.g. 20")

    def tested(self, block: str) -> dict[str, str]:
        """The names of the strategies of a block; those of the user with what loads them.

        Raises:
            FinJEPAError: for an unknown name.
        """
        on_validation = block == "validation"
        plain = [s.name for s in baselines() if not on_validation or s.name in ON_VALIDATION]
        controls = parse_names("all" if self.controls is None else self.controls, CONTROLS, "control")
        planners = parse_planners(self.planner, self.utility)
        compared = planners[:1] if self.controls is None else planners
        beside = [f"{one}{WITH}{control}" for one in compared for control in controls if possible(control, one)]
        names = [*plain, *planners, *(() if on_validation else beside)]
        return {name: name for name in names} | {load_strategy(spec).name: spec for spec in self.strategies}


@dataclass(frozen=True)
class BacktestBlock:
    """Sessions [start, stop) to test on, and which assets may be traded there (all where None)."""

    name: str
    start: int
    stop: int
    allowed: Any = field(default=None, compare=False)


@dataclass(frozen=True)
class PendingBlock:
    """A block on which strategies have no stored result yet, and what another process needs to compute them.

    Attributes:
        panel: folder of the panel.
        strategies: by name, with what loads those of the user.
        conditions: of `BacktestSetup`, all but the panel; the key has their hash.
        borrowed: baselines whose results on these sessions are stored for another checkpoint, and for which.
    """

    key: BlockKey
    checkpoint: Path
    panel: Path
    strategies: Mapping[str, str] = field(compare=False)
    conditions: Mapping[str, Any] = field(compare=False)
    borrowed: Mapping[str, str] = field(default_factory=dict, compare=False)


def run_backtests(
    warehouse: Warehouse,
    home: Settings,
    checkpoint: Path,
    panel_folder: Path,
    config: StrategiesConfig,
    log: Callable[[str], object],
) -> dict[str, Any]:
    """Test every strategy on the validation and the test block of a checkpoint and store the results; what is stored already is
    not computed again. Returns rows written to `backtest_returns`, blocks with first and last session, strategies computed.

    Raises:
        FinJEPAError: for an unknown strategy, a checkpoint that does not fit the panel, or a history that is too short.
    """
    panel = Panel.open(panel_folder)
    blocks = backtest_blocks(checkpoint, panel)
    pending = pending_blocks(warehouse, checkpoint, panel, config, blocks)
    return {
        "rows": run_blocks(warehouse, home, pending, log),
        "blocks": {b.name: [str(panel.dates[b.start]), str(panel.dates[b.stop - 1])] for b in blocks},
        "computed": sum(len(block.strategies) for block in pending),
    }


def pending_blocks(
    warehouse: Warehouse, checkpoint: Path, panel: Panel, config: StrategiesConfig, blocks: Sequence[BacktestBlock]
) -> list[PendingBlock]:
    """The blocks on which strategies have no result in the warehouse yet.

    Raises:
        FinJEPAError: if a block holds sessions that the checkpoint has seen, or cannot be traded.
    """
    model, data_version = read_config(checkpoint), str(panel.manifest["data_version"])
    tested = {block.name: config.tested(block.name) for block in blocks}
    _refuse_what_was_seen(checkpoint, panel, config.tested("test"), blocks)
    with warehouse.connect() as con:
        known = known_results(con, checkpoint.name, data_version)
    pending = []
    for block in blocks:
        allowed = None if block.allowed is None else hashlib.sha256(np.packbits(block.allowed).tobytes()).hexdigest()
        market = (config.n_assets, block.name, block.start, block.stop, panel.content_hash, allowed)
        rules = (model.model.stride, history_needed(model), asdict(model.portfolio))
        of_all = _digest(PROTOCOL, *market, *rules)  # the conditions of strategies that read no checkpoint
        setup_id = f"{of_all[:SHARED]}{_digest(of_all, checkpoint.name)[:6]}-{config.n_assets}"
        key = BlockKey(checkpoint.name, data_version, block.name, setup_id)
        strategies = {name: spec for name, spec in tested[block.name].items() if (key.setup, name) not in known}
        if not strategies:
            continue
        with warehouse.connect() as con:
            borrowed = known_elsewhere(con, key, [name for name in strategies if kind(name) == "baseline"])
        strategies = {name: spec for name, spec in strategies.items() if name not in borrowed}
        setup = BacktestSetup.over(
            panel,
            (block.start, block.stop),
            model.portfolio,
            stride=model.model.stride,
            n_assets=config.n_assets,
            window=history_needed(model),
            allowed=block.allowed,
        )
        conditions = {part.name: getattr(setup, part.name) for part in fields(setup) if part.name != "panel"}
        folders = checkpoint.absolute(), panel.folder.absolute()
        pending.append(PendingBlock(key, *folders, strategies, conditions, borrowed))
    return pending


def _digest(*made_of: object) -> str:
    return hashlib.sha256(to_json(made_of).encode()).hexdigest()


def run_blocks(
    warehouse: Warehouse, home: Settings, pending: Sequence[PendingBlock], log: Callable[[str], object]
) -> int:
    """Compute and store the results of blocks; returns the rows written to `backtest_returns`.

    A block is stored when it is complete, so that a run that is killed goes on with the first block that is not. The warehouse is
    opened only to write, never while strategies decide.

    Raises:
        FinJEPAError: if a strategy of the user fails on the first date; every other strategy would be computed in vain.
    """
    for block in pending[:1]:
        _try_once(block)
    rows = 0
    for block, results in compute_blocks(home, pending, log):
        with warehouse.connect() as con:
            rows += write_block(con, block.key, results, block.borrowed)
    return rows


def _try_once(block: PendingBlock) -> None:
    """Ask each strategy of the user for its first decision."""
    own = [spec for name, spec in block.strategies.items() if kind(name) == "user"]
    if own:
        setup, views = _setup(block)
        cash = PortfolioSimulator(setup.costs).start((1, len(setup.roster_R)))
        for spec in own:
            decide_at(load_strategy(spec), views[0], cash, setup.places(setup.decisions[0]))


def compute_blocks(
    home: Settings, pending: Sequence[PendingBlock], log: Callable[[str], object]
) -> Iterator[tuple[PendingBlock, list[StrategyResult]]]:
    """The results of each block, in the order of the blocks; the first strategy that fails ends all."""
    jobs = [(block, name) for block in pending for name in _longest_first(block)]
    folders = {folder for block in pending for folder in (block.checkpoint, block.panel)}
    with compute.map(home, result_of, jobs, folders) as found:
        for block in pending:
            results = {}
            for name in _longest_first(block):
                results[name] = next(found)
                log(f"{block.key.block}: {name} has decided {len(block.conditions['decisions'])} times")
            ordered = [results[name] for name in block.strategies]
            yield block, ordered if block.key.block == "validation" else replayed(ordered, _setup(block)[0])


def _longest_first(block: PendingBlock) -> list[str]:
    """Otherwise workers are idle at the end (Graham 1969)."""
    return sorted(block.strategies, key=lambda name: kind(name) == "baseline")


def result_of(job: tuple[PendingBlock, str]) -> StrategyResult:
    """One strategy on one block, a new one for each: it may carry memory from one decision to the next. Of a planner on the test
    block, the forecasts of returns are compared with what came."""
    block, name = job
    setup, views = _setup(block)
    if kind(name) in ("baseline", "user"):
        plain = {strategy.name: strategy for strategy in baselines()}
        return simulate(plain.get(name) or load_strategy(block.strategies[name]), setup, views)
    controls = _controls(block.checkpoint)
    is_control = kind(name) == "control"
    strategy: Strategy = controls.make(name) if is_control else FinJEPAStrategy(name, controls.imagination)
    result = simulate(strategy, setup, views)
    if isinstance(strategy, FinJEPAStrategy):
        result = replace(result, expectations=compare_expectations(strategy.expected, result))
    if is_control or block.key.block == "validation":
        return result
    return replace(result, forecasts={"world_model": forecast_quality(controls.imagination.forecast, setup, views)})


def compare_expectations(
    expected: Sequence[tuple[np.datetime64, Expectation]], result: StrategyResult
) -> dict[str, np.ndarray]:
    """Line up what a strategy expected at its decisions with what came of them, net of costs, as columns of
    `backtest_expectations`; a step runs to the close of the next decision."""
    wealth = dict(zip(result.dates_T, result.wealth_T, strict=True))
    wealth[result.decided_K[0]] = 1.0
    ends = dict(zip(result.decided_K, [*result.decided_K[1:], result.dates_T[-1]], strict=True))
    return {
        "date": np.array([date for date, _ in expected]),
        "imagined_growth": np.array([one.growth for _, one in expected]),
        "imagined_volatility": np.array([one.volatility for _, one in expected]),
        "realised_growth": np.array([np.log(wealth[ends[date]] / wealth[date]) for date, _ in expected]),
    }


@lru_cache(maxsize=2)
def _controls(checkpoint: Path) -> Controls:
    return Controls(MarketImagination(compute.local_folder(checkpoint)))


@lru_cache(maxsize=2)
def _setup(block: PendingBlock) -> tuple[BacktestSetup, list[MarketView]]:
    setup = BacktestSetup(panel=Panel.open(compute.local_folder(block.panel)), **block.conditions)
    return setup, setup.views()


def backtest_blocks(checkpoint: Path, panel: Panel) -> list[BacktestBlock]:
    """The sessions of a panel on which a checkpoint may be tested: its validation block, by date, where the panel has it, and
    everything from its test block on. A block begins where the first asset is eligible with its whole window.

    Raises:
        FinJEPAError: if the panel has too few sessions after those that the checkpoint was trained and chosen on.
    """
    config, splits = read_config(checkpoint), checkpoint_splits(checkpoint, panel)
    least, blocks = shortest_block(config), []
    for name, (first, last) in (("validation", splits.validation), ("test", splits.test)):
        ready = (s for s in range(first, last) if len(panel.eligible_assets(s, history_needed(config))))
        first = next(ready, last)
        if last - first >= least:
            blocks.append(BacktestBlock(name, first, last))
        elif name == "test":
            raise FinJEPAError(
                f"{checkpoint.name} has {last - first} sessions to be tested on, and {least} are needed: its training and its "
                f"validation end on {checkpoint_blocks(checkpoint)['validation'][1]}, these prices on {panel.dates[-1]}; "
                "ingest newer prices, or train again"
            )
    return blocks


def _refuse_what_was_seen(
    checkpoint: Path, panel: Panel, names: Iterable[str], blocks: Sequence[BacktestBlock]
) -> None:
    """Refuse a checkpoint, of an ensemble too, that was trained or chosen on sessions of a block."""
    others = dict.fromkeys(other for name in names for other in checkpoints_of(planner_in(name)))
    for folder in (checkpoint, *(checkpoint_beside(checkpoint, other) for other in others)):
        own = checkpoint_blocks(folder)
        for block in blocks:
            first, _ = own["validation" if block.name == "validation" else "test"]
            if panel.dates[block.start] < np.datetime64(first):
                raise FinJEPAError(
                    f"the {block.name} block begins on {panel.dates[block.start]}, and {folder.name} may be tested from {first} "
                    "on, after what it was trained and chosen on; leave it out, or train it on these prices"
                )


def checkpoint_folder(settings: Settings, checkpoint: str) -> Path:
    """The folder of a checkpoint of this home.

    Raises:
        FinJEPAError: if there is none, or it lies elsewhere or holds other files than this home trained.
    """
    folder = checkpoint_here(settings, checkpoint)
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


def parse_names(text: str, known: Sequence[str], what: str) -> tuple[str, ...]:
    """Names out of a comma list, each once; `all` and `none` are understood.

    Raises:
        FinJEPAError: for an unknown name.
    """
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if names in (("all",), ("none",)):
        return tuple(known) if names == ("all",) else ()
    for name in names:
        if name not in known:
            raise FinJEPAError(f"unknown {what} {name!r}; choose some of {', '.join(sorted(known))}, or all, or none")
    return names


def parse_planners(text: str, utility: str | None = None) -> tuple[str, ...]:
    """Names of the strategies out of a comma list of planners, each once; all with the utility where one is given.

    Raises:
        FinJEPAError: for an unknown name, an empty list, or a utility that cannot be read.
    """
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if not names:
        raise FinJEPAError("no planner was named; try --planner cem,mppi")
    for name in names:
        make_planner(name)
    return tuple(strategy_name(name, utility) for name in names)
