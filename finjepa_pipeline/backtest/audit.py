"""An audit: every leakage test of one strategy, with findings in `audit_results` as they come.

A failure stands: a later run of the test that passes is stored beside it and does not lift it, until the checkpoint or the
data change.
"""

import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import split_dates
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json
from finjepa_pipeline import compute
from finjepa_pipeline.backtest.blocks import PROTOCOL, backtest_blocks, read_config
from finjepa_pipeline.backtest.known_truth import MARKETS, seeds_of
from finjepa_pipeline.backtest.leakage import (
    AuditFinding,
    NotEnoughDataError,
    Product,
    delay,
    fill_lag,
    future_invariance,
    label_alignment,
    permutation,
    raw_rows,
)
from finjepa_pipeline.backtest.planner_strategies import FinJEPAStrategy, MarketImagination
from finjepa_pipeline.backtest.results import (
    NOT_ENOUGH_DATA,
    NOT_RUN,
    TESTS,
    insert,
    now,
    status_of,
    transaction,
)
from finjepa_pipeline.backtest.strategies import Strategy, load_strategy
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse

ALL_PLANNERS = "all planners"  # in place of a strategy of the user, where the data fail
_TRIED = """
    SELECT seed, found_json FROM main.audit_markets
    WHERE checkpoint = $checkpoint AND strategy = $strategy AND test = $test AND protocol = $protocol
    ORDER BY seed
"""
_NEWEST = """
    SELECT passed, finding FROM main.audit_results
    WHERE checkpoint = $checkpoint AND strategy = $strategy AND data_version = $data_version AND test = $test
    ORDER BY created_at DESC, rowid DESC
    LIMIT 1
"""
_FAILURE = """
    SELECT finding FROM main.audit_results
    WHERE checkpoint = $checkpoint AND strategy = $strategy AND test = $test AND passed IS false
        AND (data_version = $data_version OR list_contains($markets, test))
    ORDER BY created_at DESC, rowid DESC
    LIMIT 1
"""


@dataclass(frozen=True)
class AuditTask:
    """One test of a strategy, or one market of a test, as another process can run it.

    Attributes:
        who: a planner, or a strategy of the user (its name has a colon).
        home: where temporary folders are made, if this machine has it.
        seed: of the market of a test on known-truth markets.
        rows: raw prices, of the test that computes everything again.
    """

    test: str
    checkpoint: Path
    panel: Path
    who: str
    home: Path
    dates: int = 2
    seed: int | None = None
    rows: pl.DataFrame | None = field(default=None, compare=False)


def run_audit(
    warehouse: Warehouse,
    settings: Settings,
    checkpoint: Path,
    panel: Path,
    who: str,
    run_id: str,
    log: Callable[[str], object],
    *,
    dates: int,
    seeds: int,
    symbols: int,
    sessions: int,
    only: Collection[str] = TESTS,
) -> Iterator[AuditFinding]:
    """Audit a planner, or a strategy of the user (its name has a colon). A test that was not run has no finding; one that failed
    before on these prices, or on known-truth markets, is yielded as failed, with what it finds now.

    Args:
        panel: of the prices that are computed again.
        dates: random dates of the future-invariance test; seeds: null markets, and a quarter as many with known drift; none at 0.
            Markets that were simulated before are not simulated again, and count.
        symbols, sessions: the part of the home's prices that is computed again.
        only: the tests that are run.

    Raises:
        FinJEPAError: if there are no prices, or the strategy cannot be loaded.
    """
    manifest = Panel.open(panel).manifest
    name = load_strategy(who).name if ":" in who else who  # of a user's own it changes with the source
    key = {"checkpoint": checkpoint.name, "strategy": name, "data_version": str(manifest["data_version"])}
    tests = [test for test in TESTS if test in only and not (seeds == 0 and test in MARKETS)]
    with warehouse.connect() as con:
        rows = raw_rows(con, manifest["feed"], manifest["data_version"], symbols, sessions)
        tried = {test: _tried(con, key, test) for test in tests if test in MARKETS}
    tasks = []
    for test in tests:
        task = AuditTask(test, checkpoint.absolute(), panel.absolute(), who, settings.home.absolute(), dates)
        if test in MARKETS:
            wanted = seeds_of(checkpoint.name, test, seeds if test == "null_market" else max(1, seeds // 4))
            tasks += [replace(task, seed=seed) for seed in wanted if seed not in tried[test]]
        else:
            tasks.append(replace(task, rows=rows if test == "future_invariance" else None))
    with compute.map(settings, run_test, tasks, (checkpoint, panel)) as results:
        for test in tests:
            finding = None
            for task in (task for task in tasks if task.test == test):
                log(f"{test} of {who}" + (f" on the market {task.seed}" if task.seed is not None else ""))
                result = next(results)
                if isinstance(result, AuditFinding) or task.seed is None:
                    finding = result
                    continue
                tried[test][task.seed] = result
                with warehouse.connect() as con:
                    _store_market(con, key, task, result)
            finding = finding or finding_of(test, lambda test=test: MARKETS[test].finding(list(tried[test].values())))
            of = key | ({"strategy": ALL_PLANNERS} if finding.of_data and ":" in who else {})
            with warehouse.connect() as con, transaction(con):
                standing = _store(con, of, finding, run_id)
            yield standing


def run_test(task: AuditTask) -> Any:
    """The finding of a test, or what was measured on one of its markets; a test that fails to run has a finding that says so."""

    def run() -> Any:
        product, panel = _opened(task.checkpoint, task.panel, task.who)
        folder = task.home if task.home.is_dir() else None
        with tempfile.TemporaryDirectory(prefix=".audit-", dir=folder, ignore_cleanup_errors=True) as work:
            if task.seed is not None:
                return MARKETS[task.test].measure(product, Path(work), task.seed)
            if task.rows is not None:
                return future_invariance(product, task.rows, Path(work), dates=task.dates)
            return {
                "fill_lag": fill_lag,
                "label_alignment": label_alignment,
                "permutation": permutation,
                "delay": delay,
            }[task.test](product, panel)

    return finding_of(task.test, run)


def finding_of(name: str, test: Callable[[], Any]) -> Any:
    """What a test returns, or a finding that it had not enough data or could not be run."""
    try:
        return test()
    except NotEnoughDataError as error:
        return AuditFinding(name, None, float("nan"), f"{NOT_ENOUGH_DATA}: {error}")
    except FinJEPAError as error:
        return AuditFinding(name, None, float("nan"), f"{NOT_RUN}: {error}")


@lru_cache(maxsize=1)
def _opened(checkpoint: Path, panel_folder: Path, who: str) -> tuple[Product, Panel]:
    """
    Raises:
        FinJEPAError: if the strategy cannot be loaded.
    """
    panel = Panel.open(compute.local_folder(panel_folder))
    checkpoint = compute.local_folder(checkpoint)
    imagination = None if ":" in who else MarketImagination(checkpoint)
    config = read_config(checkpoint)

    def strategy(panel: Panel) -> Strategy:
        return load_strategy(who) if imagination is None else FinJEPAStrategy(who, imagination)

    def test_block(tested: Panel) -> tuple[int, int]:
        if tested.folder != panel.folder:  # a market that the checkpoint never saw
            return split_dates(len(tested.dates), config).test
        block = backtest_blocks(checkpoint, tested)[-1]
        return block.start, block.stop

    return Product(strategy, config, test_block=test_block), panel


def _store(con: duckdb.DuckDBPyConnection, key: Mapping[str, Any], finding: AuditFinding, run_id: str) -> AuditFinding:
    """Store a finding unless the newest one is the same, and return what stands."""
    asked = dict(key) | {"test": finding.test}
    newest = con.execute(_NEWEST, asked).fetchall()
    failed = con.execute(_FAILURE, asked | {"markets": list(MARKETS)}).fetchall()
    if newest != [(finding.passed, finding.text)]:
        value = None if finding.value != finding.value else finding.value
        columns = {"passed": [finding.passed], "value": [value], "created_at": [now()]}
        insert(con, "audit_results", asked | {"finding": finding.text, "run_id": run_id}, columns)
    if not failed or finding.passed is False:
        return finding
    since = f"since then {status_of(finding.passed, finding.text)}: {finding.text}"
    return replace(finding, passed=False, text=f"it failed before, and a failure stands: {failed[0][0]}; {since}")


def _tried(con: duckdb.DuckDBPyConnection, key: Mapping[str, Any], test: str) -> dict[int, Any]:
    """What was measured on markets of a test before, by seed, under the present protocol."""
    asked = {name: key[name] for name in ("checkpoint", "strategy")} | {"test": test, "protocol": PROTOCOL}
    found = {seed: json.loads(text).items() for seed, text in con.execute(_TRIED, asked).fetchall()}
    made = MARKETS[test].kind
    return {s: made(**{k: float("nan") if v is None else v for k, v in items}) for s, items in found.items()}


def _store_market(con: duckdb.DuckDBPyConnection, key: Mapping[str, Any], task: AuditTask, result: Any) -> None:
    row = {name: key[name] for name in ("checkpoint", "strategy")} | {"test": task.test, "protocol": PROTOCOL}
    insert(con, "audit_markets", row, {"seed": [task.seed], "found_json": [to_json(asdict(result))]})
