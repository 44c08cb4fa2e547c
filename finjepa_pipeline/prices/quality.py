"""The quality of the active prices, for a person: a table of findings, and pictures of coverage and quarantine."""

import json
import math
from dataclasses import dataclass

import duckdb

from finjepa_pipeline.pictures import as_markdown, new_figure
from finjepa_pipeline.prices.contract import most_allowed
from finjepa_pipeline.prices.derive import THRESHOLDS
from finjepa_pipeline.prices.rules import Rule, load_rules
from finjepa_pipeline.prices.store import current_revision, outcomes_json
from finjepa_pipeline.warehouse import sql


@dataclass(frozen=True)
class Finding:
    """A rule that rows of the active view broke, or an expectation that its batch did not keep.

    rows: how many; allowed: how many may be before it warns (None: any).
    examples: up to three of "symbol date".
    """

    rule: str
    severity: str
    rows: int
    allowed: int | None
    examples: tuple[str, ...]
    reason: str


def quality_summary(con: duckdb.DuckDBPyConnection) -> list[Finding]:
    """What was found in the active prices, hard rules first; empty when nothing was."""
    rules = {rule.rule: rule for rule in load_rules(con)}
    rows = con.execute(sql("price_quality").format(drift=sql("price_drift"), **THRESHOLDS)).fetchall()
    found = [_finding(rules[name], n, total, tuple(examples)) for name, n, total, examples in rows]
    revision = current_revision(con)
    assert revision is not None  # there are findings of something
    found += [
        Finding(outcome["column"], "soft", int(outcome["observed"]), 0, (), outcome["reason"])
        for outcome in json.loads(outcomes_json(con, revision.number))
        if not outcome["success"] and outcome["column"] not in rules
    ]
    return found


def _finding(rule: Rule, n: int, total: int, examples: tuple[str, ...]) -> Finding:
    only_told = rule.severity == "soft" and rule.threshold >= 1
    return Finding(
        rule.rule, rule.severity, n, None if only_told else math.floor(most_allowed(rule, total)), examples, rule.reason
    )


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
    for axes, counts in ((coverage, days), (quarantine, months)):
        axes.set_ylim(0, 1.05 * max((n for _, n in counts), default=1))
    return as_markdown(figure, "Coverage and quarantine")
