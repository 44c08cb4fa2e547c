"""A grid of trainings: which there are, and how each of them ended."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finjepa_model.errors import FinJEPAError


@dataclass(frozen=True)
class Ended:
    """How a training of a sweep ended.

    Attributes:
        value: of the metric, on the validation block; steps: that were trained.
        whole: whether there is a checkpoint; why: where there is none.
    """

    value: float
    steps: int
    whole: bool
    why: str = ""

    @classmethod
    def of(cls, checkpoint: Path, metric: str) -> "Ended":
        """Of a checkpoint: the evaluation that its best model won."""
        metrics = json.loads((checkpoint / "metrics.json").read_text(encoding="utf-8"))
        return cls(number(metrics["validation"] | metrics["diagnostics"], metric), metrics["training"]["steps"], True)


def variants(grid: Mapping[str, Sequence[str]], seeds: Sequence[int]) -> dict[str, dict[str, str]]:
    """Config overrides of every point of the grid with every seed, by a name that says what is special.

    Raises:
        FinJEPAError: if there is nothing to train, or the seed is in the grid.
    """
    if "training.seed" in grid:
        raise FinJEPAError("training.seed in the grid: seeds have a list of their own, `seeds`")
    if not seeds or not all(grid.values()):
        raise FinJEPAError("a sweep needs a seed, and a value for every key of its grid")
    found = {}
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        for seed in dict.fromkeys(seeds):
            name = ", ".join([*(f"{key}={value}" for key, value in point.items()), f"seed {seed}"])
            found[name] = {**point, "training.seed": str(seed)}
    return found


def number(record: Mapping[str, object], metric: str) -> float:
    """
    Raises:
        FinJEPAError: if the record has no such number.
    """
    value = record.get(metric)
    if not isinstance(value, int | float):
        known = ", ".join(sorted(name for name, value in record.items() if isinstance(value, float)))
        raise FinJEPAError(f"metric={metric!r} is no number of a validation record; choose one of {known}")
    return float(value)
