"""Gathering random windows from a panel in the page cache, against copying the batch that comes out.

python benchmarks/windows.py
"""

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from random_panel import random_panel

from finjepa_model.data.batches import DateSampler, EligibleIndex

SESSIONS, ASSETS, CHANNELS = 10_000, 1_500, 23
BATCH, SAMPLE, DAYS = 128, 20, 64


def best(work: Callable[[], object], repeats: int = 30) -> float:
    """Milliseconds of the quickest of some runs."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return 1e3 * min(found)


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="finjepa-windows-"))
    try:
        panel = random_panel(folder, SESSIONS, ASSETS, CHANNELS, market_channels=0)  # 1.4 GB
        sampler = DateSampler(EligibleIndex.of(panel, DAYS, 0, SESSIONS, SAMPLE), BATCH, SAMPLE, seed=0)
        steps = itertools.count()
        draw = best(lambda: sampler.batch(next(steps)))
        chosen = [sampler.batch(next(steps)) for _ in range(30)]
        gather = best(lambda: panel.windows(*chosen.pop(), DAYS), len(chosen))
        batch, _ = panel.windows(*sampler.batch(next(steps)), DAYS)
        target = np.empty_like(batch)
        fresh, reused = best(batch.copy), best(lambda: np.copyto(target, batch))
        print(f"batch {batch.shape}: {batch.nbytes / 1e6:.1f} MB")
        print(f"draw {draw:.2f} ms; gather {gather:.2f} ms; copy {fresh:.2f} ms, into a buffer {reused:.2f} ms")
        print(f"gather / copy {gather / fresh:.2f}; gather / copy into a buffer {gather / reused:.2f}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
