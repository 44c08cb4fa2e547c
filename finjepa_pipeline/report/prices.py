"""The quality report: one HTML page that shows what was found in the prices, and coverage and quarantine over time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from finjepa_pipeline.prices.ingest import ContractError
from finjepa_pipeline.prices.quality import Finding
from finjepa_pipeline.warehouse import sql

_HEAD = ("rule", "severity", "rows", "allowed", "examples", "reason")


def write_quality_report(con: duckdb.DuckDBPyConnection, findings: list[Finding], path: Path) -> None:
    """Write the page of the active prices beside its place and rename it into it."""
    from finjepa_pipeline.backtest.page import figure, heading, table, write_page

    coverage = con.execute("SELECT date::VARCHAR, rows FROM price_sessions ORDER BY date").fetchall()
    quarantine = con.execute(sql("quarantine_by_month")).fetchall()
    revisions = con.execute(sql("revision_history")).fetchall()
    lines = [{"dates": "sessions", "y": [rows for _, rows in coverage], "name": "symbols", "type": "scatter"}]
    bars = [
        _trace([row for row in quarantine if row[1] == rule], 2, rule, type="bar")
        for rule in sorted({rule for _, rule, _ in quarantine})
    ]
    names = ((2, "sound rows"), (3, "quarantined rows"), (4, "new rows"), (5, "restated rows"))
    grown = [_trace(revisions, place, name, type="scatter", mode="lines+markers") for place, name in names]
    parts = [
        "<h1>Quality of the prices</h1>",
        table(_HEAD, [_row(found) for found in findings], "findings"),
        heading("Coverage", "Symbols with a sound row, by session."),
        figure("coverage"),
        heading("Quarantine", "Rows by month and rule." if bars else "No row is in quarantine."),
        figure("quarantine") if bars else "",
        heading("The feed by revision", "Rows that each revision brought, found sound and put into quarantine."),
        figure("revisions"),
    ]
    figures = {
        "coverage": {"data": lines, "layout": {"yaxis": {"rangemode": "tozero"}}},
        "quarantine": {"data": bars, "layout": {"barmode": "stack", "showlegend": True}},
        "revisions": {"data": grown, "layout": {"xaxis": {"type": "category"}, "yaxis": {"type": "log"}}},
    }
    write_page(path, "Quality of the prices", parts, figures, {"sessions": [day for day, _ in coverage]})


def write_refusal(error: ContractError, path: Path) -> None:
    """Write the page that shows why the newest batch was refused: every expectation that failed, with rows as examples."""
    from finjepa_pipeline.backtest.page import heading, table, write_page

    rows = [
        (
            found.column,
            "refuses" if found.severity == "critical" else "warns",
            f"{found.observed or 0:,.0f}",
            found.bounds,
            (", ".join(found.examples), "text"),
            (found.reason, "text"),
        )
        for found in error.outcomes
        if not found.success
    ]
    head = ("rule", "what it does", "rows", "allowed", "examples", "reason")
    parts = ["<h1>Refused prices</h1>", heading(error.feed, str(error)), table(head, rows, "findings")]
    write_page(path, "Refused prices", parts, {}, {})


def _trace(rows: Sequence[Sequence[Any]], place: int, name: str, **kind: str) -> dict[str, Any]:
    return {"x": [str(row[0])[:16] for row in rows], "y": [row[place] for row in rows], "name": name, **kind}


def _row(found: Finding) -> tuple[Any, ...]:
    allowed = "any" if found.allowed is None else f"{found.allowed:,}"
    examples = ", ".join(found.examples)
    return found.rule, found.severity, f"{found.rows:,}", allowed, (examples, "text"), (found.reason, "text")
