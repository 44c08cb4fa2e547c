"""The page of prices: what was found in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import polars as pl

from finjepa_pipeline.report import figures as draw
from finjepa_pipeline.report.page import styled, write_page


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
    symbols = draw.line("symbols", coverage["symbols"], "sessions")
    figures = {
        "coverage": draw.of([symbols], yaxis={"rangemode": "tozero"}, showlegend=False),
        "revisions": draw.of(lines, xaxis={"type": "category"}, yaxis={"type": "log", "dtick": 1}),
    }
    if bars:
        figures["quarantine"] = draw.of(bars, barmode="stack", showlegend=True)
    rows = [
        (
            one.rule,
            one.severity,
            f"{one.rows:,}",
            "any" if one.allowed is None else f"{one.allowed:,}",
            styled(", ".join(one.examples), "text"),
            styled(one.reason, "text"),
        )
        for one in findings
    ]
    dates = {"sessions": coverage["date"].cast(pl.String).to_list()}
    columns, shown = ("rule", "severity", "rows", "allowed", "examples", "reason"), list(figures)
    title = "Quality of the prices"
    write_page(path, "prices.html", figures, dates, title=title, columns=columns, rows=rows, shown=shown)
