"""The quality report: one HTML page that shows what was found in the prices, and coverage and quarantine over time."""

import html
import os
from pathlib import Path

import duckdb

from finjepa_pipeline.prices.quality import Finding
from finjepa_pipeline.warehouse import sql

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:70rem;padding:1rem}table{border-collapse:collapse}"
    "th,td{padding:.3rem .7rem;text-align:left;border-bottom:1px solid #ddd}"
)


def write_quality_report(con: duckdb.DuckDBPyConnection, findings: list[Finding], path: Path) -> None:
    """Write the page of the active prices beside its place and rename it into it."""
    import plotly.graph_objects as go
    from plotly.offline import get_plotlyjs

    coverage = con.execute("SELECT date, rows FROM price_sessions ORDER BY date").fetchall()
    quarantine = con.execute(sql("quarantine_by_month")).fetchall()
    revisions = con.execute(sql("revision_history")).fetchall()
    lines = go.Figure(go.Scatter(x=[day for day, _ in coverage], y=[n for _, n in coverage], name="symbols"))
    lines.update_layout(title="Coverage: symbols with a sound row, by session")
    bars = go.Figure(
        [
            go.Bar(
                x=[m for m, r, _ in quarantine if r == rule], y=[n for _, r, n in quarantine if r == rule], name=rule
            )
            for rule in sorted({rule for _, rule, _ in quarantine})
        ]
    )
    bars.update_layout(title="Quarantine: rows by month and rule", barmode="stack", showlegend=True)
    grown = go.Figure(
        [
            go.Scatter(
                x=[row[0] for row in revisions], y=[row[place] for row in revisions], name=name, mode="lines+markers"
            )
            for place, name in ((2, "sound rows"), (3, "quarantined rows"), (4, "new rows"), (5, "restated rows"))
        ]
    )
    grown.update_layout(title="The feed by revision", yaxis_type="log")
    charts = "".join(figure.to_html(full_html=False, include_plotlyjs=False) for figure in (lines, bars, grown))
    rows = "".join(
        f"<tr><td>{found.rule}</td><td>{found.severity}</td><td>{found.rows:,}</td>"
        f"<td>{'any' if found.allowed is None else format(found.allowed, ',')}</td>"
        f"<td>{html.escape(', '.join(found.examples))}</td><td>{html.escape(found.reason)}</td></tr>"
        for found in findings
    )
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Quality of the prices</title><style>{_STYLE}'
        f"</style><script>{get_plotlyjs()}</script></head><body><h1>Quality of the prices</h1><table><tr><th>rule</th>"
        f"<th>severity</th><th>rows</th><th>allowed</th><th>examples</th><th>reason</th></tr>{rows}</table>{charts}</body></html>"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
