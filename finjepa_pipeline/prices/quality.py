"""The quality of the active prices, for a person: a table of findings, and pictures of coverage and quarantine."""

from dataclasses import dataclass

import duckdb

from finjepa_pipeline.pictures import as_markdown, new_figure
from finjepa_pipeline.prices.rules import load_rules
from finjepa_pipeline.warehouse import sql


@dataclass(frozen=True)
class Finding:
    """A rule that rows of the active view broke. `examples`: up to three of "symbol date"."""

    rule: str
    severity: str
    rows: int
    examples: tuple[str, ...]
    reason: str


def quality_summary(con: duckdb.DuckDBPyConnection) -> list[Finding]:
    """What was found in the active prices, hard rules first; empty when nothing was."""
    load_rules(con)
    rows = con.execute(sql("price_quality")).fetchall()
    return [Finding(rule, severity, n, tuple(examples), reason) for rule, severity, n, examples, reason in rows]


def coverage_picture(con: duckdb.DuckDBPyConnection) -> str:
    """Symbols a session, and rows quarantined a month, as a Markdown image."""
    days = con.execute("SELECT date, count(*) FROM prices GROUP BY date ORDER BY date").fetchall()
    months = con.execute(
        "SELECT date_trunc('month', date), count(*) FROM quarantined_prices WHERE date IS NOT NULL GROUP BY 1 ORDER BY 1"
    ).fetchall()
    figure = new_figure(height=4)
    coverage, quarantine = figure.subplots(2, sharex=True)
    coverage.plot([day for day, _ in days], [n for _, n in days], linewidth=0.8)
    coverage.set_ylabel("symbols a session")
    quarantine.bar([month for month, _ in months], [n for _, n in months], width=25, color="tab:red")
    quarantine.set_ylabel("quarantined a month")
    return as_markdown(figure, "Coverage and quarantine")
