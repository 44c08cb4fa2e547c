"""The pages about prices: what was found in them, with coverage and quarantine over time, and why a batch was refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import polars as pl

from finjepa_pipeline.report import figures as draw
from finjepa_pipeline.report.page import styled, write_page

_HEAD = ("rule", "severity", "rows", "allowed", "examples", "reason")


def write_quality_page(
    path: Path, findings: Sequence[Any], coverage: pl.DataFrame, quarantine: pl.DataFrame, revisions: pl.DataFrame
) -> None:
    """Write the page of the prices that the home shows.

    Args:
        findings: broken rules with `rule`, `severity`, `rows`, `allowed` (rows before it warns; None: any), `examples`, `reason`.
        coverage: `date` and `symbols` with a sound row.
        quarantine: `month`, `rule` and `rows`.
        revisions: `created_at`, and the rows of each revision of the feed: `sound`, `quarantined`, `new`, `restated`.
    """
    bars = [
        go.Bar(name=str(rule), x=one["month"].cast(pl.String).str.head(10).to_list(), y=one["rows"].to_list())
        for (rule,), one in quarantine.group_by("rule", maintain_order=True)
    ]
    when = revisions["created_at"].cast(pl.String).str.head(16).to_list()
    lines = [
        go.Scatter(name=f"{name} rows", x=when, y=revisions[name].to_list(), mode="lines+markers")
        for name in ("sound", "quarantined", "new", "restated")
    ]
    figures = {
        "coverage": draw.of(
            [draw.line("symbols", coverage["symbols"], "sessions")], yaxis={"rangemode": "tozero"}, showlegend=False
        ),
        "revisions": draw.of(lines, xaxis={"type": "category"}, yaxis={"type": "log", "dtick": 1}),
    }
    if bars:
        figures["quarantine"] = draw.of(bars, barmode="stack", showlegend=True)
    dates = {"sessions": coverage["date"].cast(pl.String).to_list()}
    rows = [_row(found) for found in findings]
    title = "Quality of the prices"
    write_page(path, "prices.html", figures, dates, title=title, note="", columns=_HEAD, rows=rows, shown=list(figures))


def write_refusal(path: Path, feed: str, message: str, outcomes: Sequence[Any]) -> None:
    """Write the page that shows why the newest batch was refused.

    Args:
        outcomes: of the contract, with `column`, `severity`, `success`, `observed`, `bounds`, `examples`, `reason`.
    """
    rows = [
        (
            found.column,
            "refuses" if found.severity == "critical" else "warns",
            f"{found.observed or 0:,.0f}",
            found.bounds,
            styled(", ".join(found.examples), "text"),
            styled(found.reason, "text"),
        )
        for found in outcomes
        if not found.success
    ]
    head = ("rule", "what it does", "rows", "allowed", "examples", "reason")
    note = f"{feed}: {message}"
    write_page(path, "prices.html", title="Refused prices", note=note, columns=head, rows=rows, shown=[])


def _row(found: Any) -> tuple[Any, ...]:
    allowed = "any" if found.allowed is None else f"{found.allowed:,}"
    examples = styled(", ".join(found.examples), "text")
    return found.rule, found.severity, f"{found.rows:,}", allowed, examples, styled(found.reason, "text")
