"""Kill it at any moment, run two at once: the tables are those of an undisturbed run."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from finjepa_pipeline.prices.derive import UniverseConfig, derive
from tests.pipeline.prices.conftest import Home
from tests.pipeline.prices.frames import prices

FORK = multiprocessing.get_context("fork")  # the children start with everything imported, so that kills hit the work
UNIVERSE = UniverseConfig(min_history=10, window=5)
TABLES = ("raw_prices", "prices", "quarantined_prices", "adjusted_prices", "corporate_actions", "entities", "universe")


def work(home: Home) -> None:
    home.ingest()
    derive(home.warehouse, UNIVERSE)


def contents(home: Home) -> list[list[tuple[object, ...]]]:
    return [home.query(f"SELECT * FROM {table} ORDER BY ALL") for table in TABLES]


def market(home: Home, days: int) -> None:
    rows = prices(tuple(f"S{place:03d}" for place in range(80)), days=60)
    dates = rows["date"].unique().sort()
    home.write("part.parquet", rows.filter(rows["date"] <= dates[days - 1]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_ingestion_leaves_no_trace(new_home: Callable[[], Home]) -> None:
    undisturbed = new_home()
    market(undisturbed, 50)
    work(undisturbed)
    started = time.monotonic()
    market(undisturbed, 51)
    work(undisturbed)
    whole_s = time.monotonic() - started
    expected = contents(undisturbed)
    drawn = random.Random(7)
    for _ in range(20):
        home = new_home()
        for days in (50, 51):  # killed in the first ingestion, and in the one that restates
            market(home, days)
            child = FORK.Process(target=work, args=(home,))
            child.start()
            time.sleep(drawn.uniform(0, whole_s))
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            work(home)
        found = contents(home)
        for table, ours, theirs in zip(TABLES, found, expected, strict=True):
            assert [_placeless(row) for row in ours] == [_placeless(row) for row in theirs], table


def _placeless(row: tuple[object, ...]) -> tuple[object, ...]:
    """Without the feed's name, which is the folder's."""
    return tuple(None if isinstance(value, str) and value.startswith("files:") else value for value in row)


def test_two_ingestions_at_once_make_one_revision(home: Home) -> None:
    market(home, 50)
    home.ingest()  # imports what the children need
    market(home, 51)
    children = [FORK.Process(target=home.ingest) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert home.query("SELECT revision, new_rows FROM revisions ORDER BY revision") == [(1, 4_000), (2, 80)]
