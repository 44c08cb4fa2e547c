"""One trial: every test of the audit on one strategy, findings into `audit_results` as they are known.

A failure stands: a later run of the test that passes is stored beside it and does not lift it, until the checkpoint or the
data change.
"""

import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from finjepa_model.data.batches import split_dates
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json
from finjepa_pipeline import compute
from finjepa_pipeline.backtest.audit import (
    Finding,
    NotEnoughDataError,
    Product,
    delay,
    fill_lag,
    label_alignment,
    permutation,
)
from finjepa_pipeline.backtest.audit_markets import MARKETS, seeds_of, try_market
from finjepa_pipeline.backtest.charges import NOT_ENOUGH_DATA, NOT_RUN, TESTS, verdict_of
from finjepa_pipeline.backtest.evaluate import PROTOCOL, judged_blocks, read_config
from finjepa_pipeline.backtest.finjepa_strategy import FinJEPAStrategy
from finjepa_pipeline.backtest.market_imagination import MarketImagination
from finjepa_pipeline.backtest.store import ensure_tables, insert, now, transaction
from finjepa_pipeline.backtest.strategies import Strategy
from finjepa_pipeline.backtest.truncation import raw_rows, truncation
from finjepa_pipeline.backtest.user_strategy import load_strategy
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse, sql

ALL_PLANNERS = "all planners"  # in place of a strategy of the user's that an audit is asked about, where the data fail


@dataclass(frozen=True)
class Charge:
    """Who is tried, and how: what a test needs to be held anywhere, but for the raw rows.

    Attributes:
        who: a planner, or a strategy of the user's (its name has a colon).
        dates: random dates of the truncation test.
        work: folder for what is made again.
    """

    checkpoint: Path
    panel: Path
    who: str
    dates: int
    work: Path

    def product(self) -> Product:
        """What is tried.

        Raises:
            FinJEPAError: if the strategy cannot be loaded.
        """
        imagination = None if ":" in self.who else MarketImagination(self.checkpoint)

        def strategy(panel: Panel) -> Strategy:
            return load_strategy(self.who) if imagination is None else FinJEPAStrategy(self.who, imagination)

        def test_block(panel: Panel) -> tuple[int, int]:
            if panel.folder != self.panel:  # a market that the checkpoint never saw
                return split_dates(len(panel.dates), config).test
            block = judged_blocks(self.checkpoint, panel)[-1]
            return block.start, block.stop

        config = read_config(self.checkpoint)
        return Product(strategy, config, test_block=test_block)


def hold_trial(
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
) -> Iterator[Finding]:
    """Try a planner, or a strategy of the user's (its name has a colon). A test that was not held has no finding; one that
    failed before on these prices, or on markets of known truth, is yielded as failed, with what it finds now.

    Args:
        panel: of the prices that are made again.
        dates: random dates of the truncation test; seeds: null markets, and a quarter as many planted ones; none at 0. Markets
            that were traded before are not traded again, and count.
        symbols, sessions: the part of the home's prices that is made again.
        only: the tests that are held.

    Raises:
        FinJEPAError: if there are no prices, or the strategy cannot be loaded.
    """
    manifest = Panel.open(panel).manifest
    name = load_strategy(who).name if ":" in who else who  # of a user's own it changes with the source
    key = {"checkpoint": checkpoint.name, "strategy": name, "data_version": str(manifest["data_version"])}
    names = [test for test in TESTS if test in only and not (seeds == 0 and test in MARKETS)]
    with warehouse.connect() as con:
        ensure_tables(con)
        rows = raw_rows(con, manifest["feed"], manifest["data_version"], symbols, sessions)
        traded = {test: _traded(con, key, test) for test in names if test in MARKETS}
    wanted = {
        test: seeds_of(checkpoint.name, test, seeds if test == "null_market" else max(1, seeds // 4)) for test in traded
    }
    left = {test: [seed for seed in wanted[test] if seed not in traded[test]] for test in traded}
    with tempfile.TemporaryDirectory(prefix=".audit-", dir=settings.home) as work:
        charge = Charge(checkpoint, panel, who, dates, Path(work))
        jobs = [(charge, t, s, rows if t == "truncation" else None) for t in names for s in left.get(t, [None])]
        with compute.map(settings, hold_one, jobs, (checkpoint, panel)) as results:
            for test in names:
                finding = next(results) if test not in MARKETS else None
                for seed in left.get(test, []):
                    found = next(results)
                    if isinstance(found, Finding):  # a market that cannot be traded
                        finding = finding or found
                        continue
                    traded[test][seed] = found
                    with warehouse.connect() as con:
                        _keep_traded(con, key, test, seed, found)
                if finding is None:
                    finding = held(test, lambda test=test: MARKETS[test][2](list(traded[test].values())))
                log(f"{test} of {who}")
                of = key | ({"strategy": ALL_PLANNERS} if finding.of_data and ":" in who else {})
                with warehouse.connect() as con, transaction(con):
                    standing = _keep(con, of, finding, run_id)
                yield standing


def _keep(con: duckdb.DuckDBPyConnection, key: Mapping[str, Any], finding: Finding, run_id: str) -> Finding:
    """Store a finding unless the newest one is the same, and return what stands."""
    asked = dict(key) | {"test": finding.test}
    newest = con.execute(sql("newest_finding"), asked).fetchall()
    failed = con.execute(sql("standing_failure"), asked | {"markets": list(MARKETS)}).fetchall()
    if newest != [(finding.passed, finding.text)]:
        verdict = {"test": finding.test, "finding": finding.text, "run_id": run_id}
        value = None if finding.value != finding.value else finding.value
        columns = {"passed": [finding.passed], "value": [value], "created_at": [now()]}
        insert(con, "audit_results", dict(key) | verdict, columns)
    if not failed or finding.passed is False:
        return finding
    since = f"since then {verdict_of(finding.passed, finding.text)}: {finding.text}"
    return replace(finding, passed=False, text=f"it failed before, and a failure stands: {failed[0][0]}; {since}")


def _traded(con: duckdb.DuckDBPyConnection, key: Mapping[str, Any], test: str) -> dict[int, Any]:
    """What was found on markets of a test before, by seed, under the present protocol."""
    query = (
        "SELECT seed, found_json FROM main.audit_markets WHERE checkpoint = $checkpoint AND strategy = $strategy "
        "AND test = $test AND protocol = $protocol ORDER BY seed"
    )
    asked = {name: key[name] for name in ("checkpoint", "strategy")} | {"test": test, "protocol": PROTOCOL}
    made = MARKETS[test][1]
    found = {seed: json.loads(text).items() for seed, text in con.execute(query, asked).fetchall()}
    return {s: made(**{k: float("nan") if v is None else v for k, v in items}) for s, items in found.items()}


def _keep_traded(con: duckdb.DuckDBPyConnection, key: Mapping[str, Any], test: str, seed: int, found: Any) -> None:
    row = {name: key[name] for name in ("checkpoint", "strategy")} | {"test": test, "protocol": PROTOCOL}
    insert(con, "audit_markets", row, {"seed": [seed], "found_json": [to_json(asdict(found))]})


def hold_test(charge: Charge, product: Product, rows: pl.DataFrame | None, name: str) -> Finding:
    """One test of the charge that needs no markets; a test that could not be held is no acquittal."""
    panel = Panel.open(charge.panel)
    tests: dict[str, Callable[[], Finding]] = {
        "fill_lag": lambda: fill_lag(product, panel),
        "label_alignment": lambda: label_alignment(product, panel),
        "truncation": lambda: truncation(product, rows, charge.work, dates=charge.dates),  # type: ignore[arg-type]
        "permutation": lambda: permutation(product, panel),
        "delay": lambda: delay(product, panel),
    }
    return held(name, tests[name])


def held(name: str, test: Callable[[], Finding]) -> Finding:
    """What a test finds, that it had not enough data, or that it could not be run."""
    try:
        return test()
    except NotEnoughDataError as error:
        return Finding(name, None, float("nan"), f"{NOT_ENOUGH_DATA}: {error}")
    except FinJEPAError as error:
        return Finding(name, None, float("nan"), f"{NOT_RUN}: {error}")


def hold_one(job: tuple[Charge, str, int | None, pl.DataFrame | None]) -> Any:
    """A test that is one piece, or one market of a test on markets of known truth: there the seed says which."""
    charge, test, seed, rows = job
    place = charge.work if charge.work.is_dir() else None  # a node that does not see the home
    charge = replace(
        charge, checkpoint=compute.local_folder(charge.checkpoint), panel=compute.local_folder(charge.panel)
    )
    product = _product(charge)
    with tempfile.TemporaryDirectory(dir=place) as work:
        if seed is None:
            return hold_test(replace(charge, work=Path(work)), product, rows, test)
        try:
            return try_market(product, Path(work), test, seed)
        except FinJEPAError as error:
            return held(test, lambda error=error: _raise(error))


_product = lru_cache(maxsize=1)(Charge.product)


def _raise(error: FinJEPAError) -> Finding:
    raise error
