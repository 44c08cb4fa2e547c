"""One trial: every test of the audit on one strategy, findings into `audit_results` as they are known."""

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from finjepa_model.errors import FinJEPAError
from finjepa_model.training.panel import Panel
from finjepa_pipeline.backtest.audit import Finding, Product, delay, fill_lag, label_alignment, permutation
from finjepa_pipeline.backtest.audit_markets import null_market, planted_market
from finjepa_pipeline.backtest.charges import TESTS
from finjepa_pipeline.backtest.evaluate import read_config
from finjepa_pipeline.backtest.finjepa_strategy import FinJEPAStrategy
from finjepa_pipeline.backtest.market_imagination import MarketImagination
from finjepa_pipeline.backtest.store import ensure_tables, insert, now, transaction
from finjepa_pipeline.backtest.strategies import Strategy
from finjepa_pipeline.backtest.truncation import raw_rows, truncation
from finjepa_pipeline.backtest.user_strategy import load_strategy
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse

ALL_PLANNERS = "all planners"  # in place of a strategy of the user's that an audit is asked about, where the data fail


@dataclass(frozen=True)
class Charge:
    """Who is tried, and how: what a test needs to be held anywhere, but for the raw rows.

    Attributes:
        who: a planner, or a strategy of the user's (its name has a colon).
        work: folder for what is made again; markets: folder of the markets of known truth.
    """

    checkpoint: Path
    panel: Path
    who: str
    dates: int
    seeds: int
    work: Path
    markets: Path

    @property
    def null_seeds(self) -> range:
        return range(1000, 1000 + self.seeds)

    @property
    def planted_seeds(self) -> range:
        return range(2000, 2000 + max(1, self.seeds // 4))

    def product(self) -> Product:
        """What is tried.

        Raises:
            FinJEPAError: if the strategy cannot be loaded.
        """
        imagination = None if ":" in self.who else MarketImagination(self.checkpoint)

        def strategy(panel: Panel) -> Strategy:
            return load_strategy(self.who) if imagination is None else FinJEPAStrategy(self.who, imagination)

        return Product(strategy, read_config(self.checkpoint))


def hold_trial(
    warehouse: Warehouse,
    settings: Settings,
    checkpoint: Path,
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
    """Try a planner, or a strategy of the user's (its name has a colon). A test that was not held has no finding.

    Args:
        dates: random dates of the truncation test; seeds: null markets, and a quarter as many planted ones; none at 0.
        symbols, sessions: the part of the home's prices that is made again.
        only: the tests that are held.

    Raises:
        FinJEPAError: if there are no prices, or the strategy cannot be loaded.
    """
    panel = current_panel(settings)
    with warehouse.connect() as con:
        ensure_tables(con)
        rows = raw_rows(con, symbols, sessions)
    work = Path(tempfile.mkdtemp(prefix=".audit-", dir=settings.home))
    charge = Charge(checkpoint, panel, who, dates, seeds, work, settings.home / "proving")
    names = [name for name in TESTS if name in only and not (seeds == 0 and name.endswith("_market"))]
    version = str(Panel.open(panel).manifest["data_version"])
    key = {"checkpoint": checkpoint.name, "strategy": who, "data_version": version}
    if settings.ray_address is None:
        findings = _hold_here(charge, rows, names, log)
    else:
        from finjepa_pipeline.scale.audits import hold_on

        findings = hold_on(settings, charge, rows, names, log)
    try:
        for name, finding in findings:
            key["strategy"] = ALL_PLANNERS if finding.of_data and ":" in who else who
            with warehouse.connect() as con, transaction(con):
                con.execute(
                    "DELETE FROM main.audit_results WHERE checkpoint = $checkpoint AND strategy = $strategy "
                    "AND data_version = $data_version AND test = $test",
                    key | {"test": name},
                )
                verdict = {"test": name, "passed": finding.passed, "finding": finding.text, "run_id": run_id}
                value = None if finding.value != finding.value else finding.value
                insert(con, "audit_results", key | verdict, {"value": [value], "created_at": [now()]})
            yield finding
    finally:
        shutil.rmtree(work, ignore_errors=True)


def hold_test(charge: Charge, product: Product, rows: pl.DataFrame, name: str) -> Finding:
    """One test of the charge; a test that could not be held is no acquittal."""
    panel, channels = Panel.open(charge.panel), product.config.model.channels
    tests: dict[str, Callable[[], Finding]] = {
        "fill_lag": lambda: fill_lag(product, panel),
        "label_alignment": lambda: label_alignment(product, panel),
        "truncation": lambda: truncation(product, rows, charge.work, dates=charge.dates),
        "permutation": lambda: permutation(product, panel),
        "delay": lambda: delay(product, panel),
        "null_market": lambda: null_market(product, charge.markets, charge.null_seeds, channels),
        "planted_market": lambda: planted_market(product, charge.markets, charge.planted_seeds, channels),
    }
    return held(name, tests[name])


def held(name: str, test: Callable[[], Finding]) -> Finding:
    """What a test finds, or that it could not be held."""
    try:
        return test()
    except FinJEPAError as error:
        return Finding(name, False, float("nan"), f"could not be held: {error}")


def _hold_here(
    charge: Charge, rows: pl.DataFrame, names: Sequence[str], log: Callable[[str], object]
) -> Iterator[tuple[str, Finding]]:
    product = charge.product()
    for name in names:
        log(f"{name} of {charge.who}")
        yield name, hold_test(charge, product, rows, name)
