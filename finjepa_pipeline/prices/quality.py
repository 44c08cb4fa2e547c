"""The quality of the active prices: broken rules, coverage, quarantine and revisions, as the pages show them."""

import json
import math
from dataclasses import dataclass

import duckdb
import polars as pl

from finjepa_pipeline.prices.contract import most_allowed
from finjepa_pipeline.prices.derive import THRESHOLDS
from finjepa_pipeline.prices.history import current_revision, outcomes_json
from finjepa_pipeline.prices.rules import BY_NAME, ROW_RULES, Rule
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
    revision = current_revision(con)
    assert revision is not None  # there are findings of something
    # a source that has no adj_close at all misses none
    counted = [rule for rule in ROW_RULES if rule.name != "missing_adj_close" or "adj_close" in revision.columns]
    bits = ", ".join(f"('{rule.name}', {rule.bit})" for rule in counted)
    query = sql("prices/quality").format(**THRESHOLDS, bits=bits, missing_ohlc=BY_NAME["missing_ohlc"].bit)
    total = revision.rows + revision.quarantined_rows
    found = [_finding(BY_NAME[name], n, total, tuple(examples)) for name, n, examples in con.execute(query).fetchall()]
    found.sort(key=lambda finding: finding.severity)  # hard before soft; the most frequent first
    found += [
        Finding(outcome["column"], "soft", int(outcome["observed"]), 0, (), outcome["reason"])
        for outcome in json.loads(outcomes_json(con, revision.number))
        if not outcome["success"] and outcome["column"] not in BY_NAME
    ]
    return found


def _finding(rule: Rule, n: int, total: int, examples: tuple[str, ...]) -> Finding:
    only_told = rule.severity == "soft" and rule.threshold >= 1
    return Finding(
        rule.name, rule.severity, n, None if only_told else math.floor(most_allowed(rule, total)), examples, rule.reason
    )


def coverage(con: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """Symbols with a sound row by session: `date`, `symbols`."""
    return con.sql("SELECT date, count(*) AS symbols FROM prices GROUP BY date ORDER BY date").pl()


def quarantine_by_month(con: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """Rows in quarantine by month and by the first rule that each broke: `month`, `rule`, `rows`."""
    return con.sql(
        "SELECT date_trunc('month', date)::DATE AS month, rule, count(*) AS rows FROM quarantined_prices "
        "WHERE date IS NOT NULL GROUP BY ALL ORDER BY rule, month"
    ).pl()


def revision_history(con: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """The revisions of the active feed: `created_at`, and the rows of each: `sound`, `quarantined`, `new`, `restated`."""
    return con.sql(
        "SELECT created_at, total_rows - quarantined_rows AS sound, quarantined_rows AS quarantined, new_rows AS new, "
        "ended_rows AS restated FROM revisions WHERE feed_id = (SELECT feed_id FROM active_view) ORDER BY revision"
    ).pl()
