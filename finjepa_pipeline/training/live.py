"""A training that is under way, told to whoever watches: the records of its `metrics.jsonl`, as they are written."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finjepa_model.training.records import read_metrics

_POINTS = 200  # of a curve of training losses, at most; evaluations are told one and all
_PATIENCE_S = 1.0


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

    def watch() -> None:
        while not ended.wait(_PATIENCE_S):
            tell_new()

    ended = threading.Event()
    thread = threading.Thread(target=watch, daemon=True, name="training-curves")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        tell_new()
