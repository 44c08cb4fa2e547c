"""One trial: every test of the audit on one strategy, findings into `audit_results` as they are known."""

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

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
    config = read_config(checkpoint)
    panel = Panel.open(current_panel(settings))
    imagination = None if ":" in who else MarketImagination(checkpoint)

    def strategy(panel: Panel) -> Strategy:
        return load_strategy(who) if imagination is None else FinJEPAStrategy(who, imagination)

    product = Product(strategy, config)
    with warehouse.connect() as con:
        ensure_tables(con)
        rows = raw_rows(con, symbols, sessions)
    work = Path(tempfile.mkdtemp(prefix=".audit-", dir=settings.home))
    markets = settings.home / "proving"
    channels = config.model.channels
    tests: dict[str, Callable[[], Finding]] = {
        "fill_lag": lambda: fill_lag(product, panel),
        "label_alignment": lambda: label_alignment(product, panel),
        "truncation": lambda: truncation(product, rows, work, dates=dates),
        "permutation": lambda: permutation(product, panel),
        "delay": lambda: delay(product, panel),
        "null_market": lambda: null_market(product, markets, range(1000, 1000 + seeds), channels),
        "planted_market": lambda: planted_market(product, markets, range(2000, 2000 + max(1, seeds // 4)), channels),
    }
    key = {"checkpoint": checkpoint.name, "strategy": who, "data_version": str(panel.manifest["data_version"])}
    try:
        for name, test in tests.items():
            if name not in only or (seeds == 0 and name.endswith("_market")):
                continue
            log(f"{name} of {who}")
            try:
                finding = test()
            except FinJEPAError as error:  # a trial that could not be held is no acquittal
                finding = Finding(name, False, float("nan"), f"could not be held: {error}")
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
