"""The trial that a challenger stands before the champion gate: those tests of the audit that a night has time for, once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finjepa_model.data.panel import Panel
from finjepa_pipeline.backtest.charges import BEFORE_THE_GATE, NOT_RUN, verdict_of
from finjepa_pipeline.backtest.store import best_planner
from finjepa_pipeline.publishing.checks import audit_of
from finjepa_pipeline.report.backtest import page_of, write_report
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse

SCALE = {"dates": 2, "seeds": 4, "symbols": 10, "sessions": 1000}  # of a night; `finjepa audit` holds longer ones


@dataclass(frozen=True)
class Trial:
    """Of a challenger with the planner that acts for it; `findings` are (passed, what was found) by test, those that stood in
    the table already included, and `held` names the tests of this call."""

    checkpoint: Path
    strategy: str | None
    findings: dict[str, tuple[bool | None, str]]
    held: tuple[str, ...]


def try_challenger(
    settings: Settings, warehouse: Warehouse, checkpoint: Path, panel: Path, run_id: str, log: Callable[[str], object]
) -> Trial:
    """Hold those tests that the gate asks for and that were not held of this challenger before, and show them in its report.

    Raises:
        FinJEPAError: if there is no backtest.
    """
    from finjepa_pipeline.backtest.report_data import report_of
    from finjepa_pipeline.backtest.trial import hold_trial

    data_version = str(Panel.open(panel).manifest["data_version"])
    with warehouse.connect() as con:
        strategy = best_planner(con, checkpoint.name, data_version)
        known = audit_of(con, checkpoint.name, strategy)
    unknown = (None, NOT_RUN)
    missing = [test for test in BEFORE_THE_GATE if verdict_of(*known.get(test, unknown)) == NOT_RUN] if strategy else []
    if strategy and missing:
        for found in hold_trial(warehouse, settings, checkpoint, panel, strategy, run_id, log, only=missing, **SCALE):
            known[found.test] = (found.passed, found.text)
        with warehouse.connect() as con:
            report = report_of(con, checkpoint, data_version)
        write_report(page_of(settings.reports, checkpoint.name, data_version), f"FinJEPA {checkpoint.name}", report)
    return Trial(checkpoint, strategy, known, tuple(missing))
