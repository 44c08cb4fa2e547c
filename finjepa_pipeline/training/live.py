"""A training that is under way, told to whoever watches: the records of its `metrics.jsonl`, as they are written."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finjepa_model.training.state import read_metrics
from finjepa_pipeline.training.polling import repeatedly

_POINTS = 200  # of a curve of training losses, at most; evaluations are told one and all


@contextlib.contextmanager
def watched(run_folder: Path, total_steps: int, tell: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """While the block runs, and once more at its end, tell the records that are new.

    Args:
        total_steps: of the training; of its losses one in `total_steps` / 200 steps is told.
        tell: called from a thread of its own.
    """
    seen = {record["kind"]: record["step"] for record in read_metrics(run_folder)}
    spacing = max(total_steps // _POINTS, 1)

    def tell_new() -> None:
        for record in read_metrics(run_folder):
            kind, step = record["kind"], record["step"]
            if step >= seen.get(kind, 0) + (spacing if kind == "train" else 1):
                seen[kind] = step
                tell(record)

    try:
        with repeatedly(tell_new, "training-curves"):
            yield
    finally:
        tell_new()
