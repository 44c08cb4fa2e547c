"""Strategies that are judged on a Ray cluster: each walk, each replay and each forecaster of a block is a task of its own.

What a task is told is names and numbers. Panel and checkpoint are memory-mapped and read where it runs, and what one task has
found goes to the next from node to node, past the driver. A task whose worker dies is given to another one, and tells the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from finjepa_model.data.panel import Panel
from finjepa_pipeline.artifacts import Artifacts, keep
from finjepa_pipeline.backtest.baselines import kind
from finjepa_pipeline.backtest.docket import Docket
from finjepa_pipeline.backtest.engine import Court, Walk, walk
from finjepa_pipeline.backtest.evaluate import Bench, Hearing, StrategyError
from finjepa_pipeline.backtest.evidence import Expectations, forecast_quality, judge_expectations
from finjepa_pipeline.backtest.finjepa_strategy import FinJEPAStrategy
from finjepa_pipeline.backtest.information import Information
from finjepa_pipeline.backtest.market_imagination import MarketImagination
from finjepa_pipeline.backtest.replay import attribution, cost_grid
from finjepa_pipeline.backtest.store import Case, Evidence
from finjepa_pipeline.scale.cluster import as_task, connected
from finjepa_pipeline.settings import Settings

_SITTINGS = 4  # that a worker keeps open: the blocks of a fold
REPLAYS = {"cost_grid": cost_grid, "attribution": attribution}
Found = tuple[Walk, Expectations | None]


@dataclass(frozen=True)
class Sitting:
    """A hearing as it is told to a task: everything but the panel and what was opened of the checkpoint.

    Attributes:
        court: of `Court`, without the panel and the overnight returns; artifacts: store for nodes that do not see the home.
    """

    case: Case
    checkpoint: Path
    panel: Path
    docket: Docket
    artifacts: str | None
    court: Mapping[str, object] = field(compare=False)  # the case has its hash

    @classmethod
    def of(cls, hearing: Hearing, artifacts: str | None) -> "Sitting":
        told = {name: getattr(hearing.court, name) for name in Court.__dataclass_fields__}
        del told["panel"], told["overnight"]
        folders = hearing.checkpoint.absolute(), hearing.court.panel.folder.absolute()
        return cls(hearing.case, *folders, hearing.docket, artifacts, told)


def judge_on(
    settings: Settings, hearings: Sequence[Hearing], log: Callable[[str], object]
) -> Iterator[tuple[Hearing, Evidence]]:
    """Judge all hearings at once, as many tasks as the cluster has CPUs; they come back one by one, in their order.

    Raises:
        FinJEPAError: if there is no cluster.
        StrategyError: for the first strategy that raised something.
    """
    assert settings.ray_address is not None
    for folder in {folder for h in hearings for folder in (h.checkpoint, h.court.panel.folder)}:
        keep(settings, folder)  # for nodes that do not see this home
    with connected(settings.ray_address) as ray:
        tasks = Tasks(ray)
        asked = [tasks.of(hearing, Sitting.of(hearing, settings.artifacts)) for hearing in hearings]
        log(f"{sum(map(len, (walks for walks, _, _ in asked)))} walks, as tasks on {settings.ray_address}")
        for hearing, (walks, replays, forecasts) in zip(hearings, asked, strict=True):
            found: dict[str, Found] = {}
            for name, task in walks.items():
                try:
                    found[name] = ray.get(task)
                except ray.exceptions.RayTaskError as error:
                    raise StrategyError(hearing, name) from error.cause
                log(f"{hearing.case.block}: {name} has walked")
            evidence = Evidence(
                walks=[walked for walked, _ in found.values()],
                expectations={name: told for name, (_, told) in found.items() if told is not None},
                replays={name: array for task in replays for name, array in ray.get(task).items()},
                forecasts={name: ray.get(task) for name, task in forecasts.items()},
            )
            yield hearing, evidence


class Tasks:
    """What a hearing is made of, as tasks that wait for one another."""

    def __init__(self, ray: Any):
        self._ray = ray
        self._arrays: dict[int, Any] = {}  # what hearings share travels to a node once
        self._walk, self._replay, self._forecast = (as_task(ray, f) for f in (walk_one, replay_one, forecast_one))

    def of(self, hearing: Hearing, sitting: Sitting) -> tuple[dict[str, Any], list[Any], dict[str, Any]]:
        here, overnight = self._ray.put(sitting), self._shared(hearing.court.overnight)
        # who plans or learns walks longest, and begins first: otherwise nodes stand idle at the end (Graham 1969)
        order = sorted(hearing.names, key=lambda name: kind(name) == "baseline")
        begun = {name: self._walk.remote(here, overnight, name) for name in order}
        walks = {name: begun[name] for name in hearing.names}
        if hearing.case.block == "validation":
            return walks, [], {}
        replays = [self._replay.remote(here, overnight, name, *walks.values()) for name in REPLAYS]
        return walks, replays, {f: self._forecast.remote(here, overnight, f) for f in hearing.forecasters}

    def _shared(self, array: np.ndarray | None) -> Any:
        if array is None:
            return None
        if id(array) not in self._arrays:
            self._arrays[id(array)] = self._ray.put(array)
        return self._arrays[id(array)]


def walk_one(sitting: Sitting, overnight: np.ndarray | None, name: str) -> Found:
    """One strategy's walk, on a node of the cluster."""
    seat = _seat(sitting)
    (strategy,) = seat.bench.make([name])
    walked = walk(strategy, seat.court(overnight), seat.views)
    return walked, judge_expectations(strategy.expected, walked) if isinstance(strategy, FinJEPAStrategy) else None


def replay_one(sitting: Sitting, overnight: np.ndarray | None, name: str, *found: Found) -> dict[str, np.ndarray]:
    """All walks of a hearing under other costs, or without parts of their actions."""
    return REPLAYS[name]([walked for walked, _ in found], _seat(sitting).court(overnight))


def forecast_one(sitting: Sitting, overnight: np.ndarray | None, name: str) -> dict[str, Information]:
    """Quality of one forecaster."""
    seat = _seat(sitting)
    return forecast_quality(seat.bench.forecast(name), seat.court(overnight), seat.views)


class _Seat:
    """A hearing, opened in a worker process for all of its tasks that come there."""

    def __init__(self, sitting: Sitting):
        checkpoint, panel = sitting.checkpoint, sitting.panel
        if sitting.artifacts:
            store = Artifacts(sitting.artifacts)
            checkpoint, panel = store.in_place(checkpoint), store.in_place(panel)
        self.bench = Bench(Panel.open(panel), MarketImagination(checkpoint), sitting.docket)
        self._told = sitting.court
        self._court: Court | None = None
        self.views = self.court(None).views()  # what is known at a close has no night in it

    def court(self, overnight: np.ndarray | None) -> Court:
        if self._court is None or (self._court.overnight is None) != (overnight is None):
            self._court = Court(panel=self.bench.panel, overnight=overnight, **self._told)  # type: ignore[arg-type]
        return self._court


_seat = lru_cache(maxsize=_SITTINGS)(_Seat)
