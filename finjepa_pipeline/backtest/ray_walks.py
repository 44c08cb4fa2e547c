"""Strategies that walk on a Ray cluster, each a task of its own. What a task is told is names and numbers: panel and checkpoint
are memory-mapped and read where it runs. A task whose worker dies is given to another one, and tells the same."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finjepa_model.training.panel import Panel
from finjepa_pipeline.backtest.engine import Court, Walk, walk
from finjepa_pipeline.backtest.evidence import Expectations, judge_expectations
from finjepa_pipeline.backtest.finjepa_strategy import FinJEPAStrategy
from finjepa_pipeline.backtest.market_imagination import MarketImagination
from finjepa_pipeline.scale.cluster import connected

if TYPE_CHECKING:
    from finjepa_pipeline.backtest.evaluate import Bench, Docket

_WORKERS_THAT_MAY_DIE = 3  # under one task
Found = tuple[Walk, Expectations | None]


@dataclass(frozen=True)
class Sitting:
    """A court without its panel, as it is told to a task; `overnight` is the file of the court's array."""

    checkpoint: Path
    panel: Path
    docket: "Docket"
    court: Mapping[str, object]
    overnight: Path | None


def walk_on(
    address: str, bench: "Bench", court: Court, names: Sequence[str], log: Callable[[str], object]
) -> dict[str, Found | BaseException]:
    """Walk the named strategies, as many at once as the cluster has CPUs.

    Returns:
        By name the walk and, of planners, what they expected; or what a strategy raised.

    Raises:
        FinJEPAError: if there is no cluster.
    """
    panel = court.panel
    told = {name: value for name, value in vars(court).items() if name in Court.__dataclass_fields__}
    del told["panel"], told["overnight"]
    file = None
    if court.overnight is not None:
        file = panel.folder.with_name(f".tmp-overnight-{panel.folder.name}.npy")
        np.save(file, court.overnight)
    sitting = Sitting(Path(bench.imagination.checkpoint).absolute(), panel.folder.absolute(), bench.docket, told, file)
    found: dict[str, Found | BaseException] = {}
    try:
        with connected(address) as ray:
            task = ray.remote(num_cpus=1, max_retries=_WORKERS_THAT_MAY_DIE)(walk_one)
            here = ray.put(sitting)
            asked = {task.remote(here, name): name for name in names}
            while asked:
                (done, *_), _ = ray.wait(list(asked))
                name = asked.pop(done)
                try:
                    found[name] = ray.get(done)
                    log(f"{name} has walked")
                except ray.exceptions.RayTaskError as error:
                    found[name] = error.cause
    finally:
        if file:
            file.unlink(missing_ok=True)
    return found


def walk_one(sitting: Sitting, name: str) -> Found:
    """One strategy's walk, on a node of the cluster."""
    bench = _bench(sitting.checkpoint, sitting.panel, sitting.docket)
    overnight = None if sitting.overnight is None else np.load(sitting.overnight, mmap_mode="r")
    court = Court(panel=bench.panel, overnight=overnight, **sitting.court)  # type: ignore[arg-type]
    views = court.views()
    if name in (*sitting.docket.planners, "shuffled_actions"):
        bench.imagination.prepare(views)
    (strategy,) = bench.make([name])
    walked = walk(strategy, court, views)
    return walked, judge_expectations(strategy.expected, walked) if isinstance(strategy, FinJEPAStrategy) else None


@lru_cache(maxsize=1)
def _bench(checkpoint: Path, panel: Path, docket: "Docket") -> "Bench":
    """Opened once in a worker process, for all tasks of a backtest that come to it."""
    from finjepa_pipeline.backtest.evaluate import Bench

    return Bench(Panel.open(panel), MarketImagination(checkpoint), docket)
