"""The tests of an audit on a Ray cluster: each a task of its own, and of those on markets of known truth each market."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from finjepa_pipeline.artifacts import Artifacts, keep
from finjepa_pipeline.backtest.audit import Finding, Product
from finjepa_pipeline.backtest.audit_markets import MARKETS, try_market
from finjepa_pipeline.backtest.trial import Charge, Result, hold_test, trade_all
from finjepa_pipeline.scale.cluster import as_task, connected
from finjepa_pipeline.settings import Settings


def hold_on(
    settings: Settings, charge: Charge, rows: pl.DataFrame, names: Sequence[str], log: Callable[[str], object]
) -> Iterator[Result]:
    """Hold the named tests, as many tasks at once as the cluster has CPUs; findings come in the order of the names.

    Args:
        rows: raw prices of the truncation test; they travel to a node once.

    Raises:
        FinJEPAError: if there is no cluster.
    """
    assert settings.ray_address is not None
    keep(settings, charge.checkpoint)
    keep(settings, charge.panel)
    with connected(settings.ray_address) as ray:
        here, prices = ray.put((charge, settings.artifacts)), ray.put(rows)
        whole, market = as_task(ray, test_one), as_task(ray, market_one)
        asked: dict[str, Any] = {
            name: {seed: market.remote(here, name, seed) for seed in charge.seeds[name]}
            if name in MARKETS
            else whole.remote(here, prices, name)
            for name in names
        }
        for name in names:
            if name in MARKETS:
                tasks = {seed: lambda task=task: _got(ray, task) for seed, task in asked[name].items()}
                yield from trade_all(name, tasks)
            else:
                yield name, _got(ray, asked[name])
            log(f"{name} of {charge.who} was held")


def test_one(told: tuple[Charge, str | None], rows: pl.DataFrame, name: str) -> Finding:
    """A test that is one piece."""
    charge, product = _opened(told)
    if charge.work.is_dir():
        return hold_test(charge, product, rows, name)
    with tempfile.TemporaryDirectory(prefix="finjepa-audit-") as work:
        return hold_test(replace(charge, work=Path(work)), product, rows, name)


def market_one(told: tuple[Charge, str | None], name: str, seed: int) -> Any:
    """One market of a test on markets of known truth."""
    _, product = _opened(told)
    with tempfile.TemporaryDirectory(prefix="finjepa-audit-") as work:
        return try_market(product, Path(work), name, seed)


@lru_cache(maxsize=1)
def _opened(told: tuple[Charge, str | None]) -> tuple[Charge, Product]:
    """Opened once in a worker process; folders of a home that is not seen from here are this machine's own."""
    charge, artifacts = told
    if artifacts:
        store = Artifacts(artifacts)
        charge = replace(charge, checkpoint=store.in_place(charge.checkpoint), panel=store.in_place(charge.panel))
    return charge, charge.product()


def _got(ray: Any, task: Any) -> Any:
    """What a task has found; what it raised is raised as it was."""
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
