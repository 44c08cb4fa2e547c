"""An audit: every leakage test of one strategy, with findings in `audit_results` as they come.

A failure stands: a later run of the test that passes is stored beside it and does not lift it, until the checkpoint or the
data change.
"""

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from finjepa_model.checkpoint import read_config
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import split_dates
from finjepa_model.errors import FinJEPAError
from finjepa_model.planner_strategies import FinJEPAStrategy, MarketImagination
from finjepa_pipeline import compute
from finjepa_pipeline.backtest import leakage
from finjepa_pipeline.backtest.blocks import backtest_blocks
from finjepa_pipeline.backtest.known_truth import MARKETS, seeds_of
from finjepa_pipeline.backtest.leaderboard import acting_planner, report_of
from finjepa_pipeline.backtest.leakage import DELAYS, AuditFinding, NotEnoughDataError, Product
from finjepa_pipeline.backtest.results import BEFORE_THE_GATE, NOT_ENOUGH_DATA, NOT_RUN, TESTS, or_null, status_of
from finjepa_pipeline.backtest.strategies import Strategy, load_strategy
from finjepa_pipeline.report.backtest import page_of, write_report
from finjepa_pipeline.report.risk import read_scorecard
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import content_hash
from finjepa_pipeline.warehouse import Warehouse, insert, now, sql, transaction

# Of a nightly run; `finjepa audit` runs longer ones.
AUDIT_SCALE = {"dates": 2, "seeds": 4, "symbols": 10, "sessions": 1000}
# What all parts of a test say.
TOGETHER = {"delay": leakage.delay} | {name: finding for name, (_, finding) in MARKETS.items()}
ALL_PLANNERS = "all planners"  # in place of a strategy of the user, where the data fail
_FOUND = """
    SELECT passed, finding, data_version FROM main.audit_results
    WHERE checkpoint = $checkpoint AND strategy = $strategy AND test = $test ORDER BY created_at DESC, rowid DESC
"""


@dataclass(frozen=True)
class AuditTask:
    """One test of a strategy, or one market of a test, as another process can run it.

    Attributes:
        who: a planner, or a strategy of the user (its name has a colon).
        home: where temporary folders are made, if this machine has it.
        part: of a test that has several: the seed of a known-truth market, or the sessions of a delay.
        rows: raw prices, of the test that computes everything again.
    """

    test: str
    checkpoint: Path
    panel: Path
    who: str
    home: Path
    dates: int = 2
    part: int | None = None
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
    """Audit a planner, or a strategy of the user (its name has a colon). A test that failed before on these prices, or on
    known-truth markets, is yielded as failed, with what it finds now.

    Args:
        panel: of the prices that are computed again.
        dates: random dates of the future-invariance test; seeds: null markets, and a quarter as many with known drift; none at 0.
        symbols, sessions: the part of the home's prices that is computed again.
        only: the tests that are run.

    Raises:
        FinJEPAError: if there are no prices, or the strategy cannot be loaded.
    """
    manifest = Panel.open(panel).manifest
    name = load_strategy(who).name if ":" in who else who  # of a user's own it changes with the source
    key = {"checkpoint": checkpoint.name, "strategy": name, "data_version": str(manifest["data_version"])}
    with warehouse.connect() as con:
        rows = leakage.raw_rows(con, manifest["feed"], manifest["data_version"], symbols, sessions)
    model, tasks = content_hash(checkpoint), []
    for test in (test for test in TESTS if test in only):
        task = AuditTask(test, checkpoint.absolute(), panel.absolute(), who, settings.home.absolute(), dates)
        if test == "delay":
            tasks += [replace(task, part=sessions) for sessions in DELAYS]
        elif test not in MARKETS:
            tasks.append(replace(task, rows=rows if test == "future_invariance" else None))
        elif seeds:
            wanted = seeds_of(model, test, seeds if test == "null_market" else max(1, seeds // 4))
            tasks += [replace(task, part=seed) for seed in wanted]
    with compute.map(settings, run_test, tasks, (checkpoint, panel)) as results:
        for test in dict.fromkeys(task.test for task in tasks):
            log(f"{test} of {who}")
            found = [next(results) for task in tasks if task.test == test]
            broken = next((one for one in found if isinstance(one, AuditFinding)), None)
            finding = broken or finding_of(test, lambda test=test, found=found: TOGETHER[test](found))
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
            if task.part is not None and task.test in MARKETS:
                return MARKETS[task.test][0](product, Path(work), task.part)
            if task.part is not None:
                return leakage.delayed(product, panel, task.part)
            if task.rows is not None:
                return leakage.future_invariance(product, task.rows, Path(work), dates=task.dates)
            return getattr(leakage, task.test)(product, panel)

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
    asked, version = {**key, "test": finding.test}, key["data_version"]
    found = con.execute(_FOUND, {name: asked[name] for name in ("checkpoint", "strategy", "test")}).fetchall()
    newest = next(((passed, text) for passed, text, data in found if data == version), None)
    failed = [text for passed, text, data in found if passed is False and (data == version or finding.test in MARKETS)]
    if newest != (finding.passed, finding.text):
        columns = {"passed": [finding.passed], "value": [or_null(finding.value)], "created_at": [now()]}
        insert(con, "audit_results", asked | {"finding": finding.text, "run_id": run_id}, columns)
    if not failed or finding.passed is False:
        return finding
    since = f"since then {status_of(finding.passed, finding.text)}: {finding.text}"
    return replace(finding, passed=False, text=f"it failed before, and a failure stands: {failed[0]}; {since}")


# Before the gate


def audit_of(
    con: duckdb.DuckDBPyConnection, checkpoint: str, strategy: str | None
) -> dict[str, tuple[bool | None, str]]:
    """The standing verdict of each test that was ever run of a checkpoint's planner: whether it passed, None without a verdict,
    and what was found."""
    query = sql("backtest/audit_of_checkpoint")
    rows = con.execute(query, {"checkpoint": checkpoint, "strategy": strategy}).fetchall()
    return {test: (passed, text) for test, passed, text in rows}


@dataclass(frozen=True)
class ChallengerAudit:
    """Of the planner that acts for a challenger; `findings` are (passed, what was found) by test, earlier ones included, and
    `run` names the tests that this call ran."""

    strategy: str | None
    findings: dict[str, tuple[bool | None, str]]
    run: tuple[str, ...]


def audit_challenger(
    settings: Settings, warehouse: Warehouse, checkpoint: Path, panel: Path, run_id: str, log: Callable[[str], object]
) -> ChallengerAudit:
    """Run those tests that the gate asks for and that were not run for this challenger before, and show them in its report.

    Raises:
        FinJEPAError: see `run_audit`.
    """
    data_version = str(Panel.open(panel).manifest["data_version"])
    with warehouse.connect() as con:
        strategy = acting_planner(con, checkpoint.name, data_version, settings.planner).strategy
        known = audit_of(con, checkpoint.name, strategy)
    unknown = (None, NOT_RUN)
    missing = [test for test in BEFORE_THE_GATE if status_of(*known.get(test, unknown)) == NOT_RUN] if strategy else []
    if strategy and missing:
        log(f"{len(missing)} tests of {strategy} that the gate asks for: {', '.join(missing)}")
        for found in run_audit(
            warehouse, settings, checkpoint, panel, strategy, run_id, log, only=missing, **AUDIT_SCALE
        ):
            known[found.test] = (found.passed, found.text)
        with warehouse.connect() as con:
            report = report_of(con, checkpoint, data_version, settings.planner)
        page = page_of(settings.reports, checkpoint.name, data_version)
        write_report(page, checkpoint.name, report, read_scorecard(settings.reports, checkpoint.name))
    return ChallengerAudit(strategy, known, tuple(missing))
