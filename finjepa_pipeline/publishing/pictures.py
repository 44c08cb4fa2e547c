"""What the UI shows of the gate and of a decision."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from finjepa_pipeline.backtest.charges import verdict_of
from finjepa_pipeline.pictures import as_markdown, new_figure
from finjepa_pipeline.publishing.checks import Finding


def findings_table(findings: Sequence[Finding]) -> dg.TableMetadataValue:
    """Every check of the gate with what it found."""
    return _table(
        ("check", "result", "blocking", "found"),
        [(one.name, one.verdict, "yes" if one.blocking else "no", one.detail) for one in findings],
    )


def audit_table(findings: Mapping[str, tuple[bool | None, str]]) -> dg.TableMetadataValue:
    """Every test that was held of a checkpoint, with what it found."""
    rows = [(test, verdict_of(passed, found), found) for test, (passed, found) in findings.items()]
    return _table(("test", "result", "found"), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dg.TableMetadataValue:
    records = [dg.TableRecord(dict(zip(columns, row, strict=True))) for row in rows]
    return dg.TableMetadataValue(records, dg.TableSchema([dg.TableColumn(name) for name in columns]))


def holdings_picture(decision: dict[str, Any]) -> str:
    """What is held and what is to be held, as shares of wealth."""
    names = sorted({*decision["assets"], *decision["held"]})
    places = range(len(names))
    figure = new_figure(2.6)
    axes = figure.subplots()
    for offset, key, label in ((-0.2, "held", "held at the close"), (0.2, "positions", "to hold after the next")):
        axes.bar([i + offset for i in places], [decision[key].get(name, 0.0) for name in names], 0.4, label=label)
    axes.set_xticks(list(places), names, rotation=60, fontsize=7)
    axes.set_ylabel("share of wealth")
    axes.legend(frameon=False, fontsize=7)
    return as_markdown(figure, "holdings")
