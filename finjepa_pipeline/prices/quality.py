"""The quality of the active prices: broken rules, coverage, quarantine and revisions, as the pages show them."""

import json
import math
from dataclasses import dataclass

import duckdb
import numpy as np
import polars as pl

from finjepa_model.features.adjust import FACTOR_STEP, LONG_GAP
from finjepa_pipeline.prices.history import current_revision
from finjepa_pipeline.prices.rules import BITS, BY_NAME, ROW_RULES
from finjepa_pipeline.warehouse import sql

MOST_PSI = 0.25  # population stability index of a month against the twelve before it
LEAST_ROWS = 1_000  # of a month, and of those before it, for them to be compared


@dataclass(frozen=True)
class QualityFinding:
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


def quality_summary(con: duckdb.DuckDBPyConnection) -> list[QualityFinding]:
    """What was found in the active prices, hard rules first; empty when nothing was."""
    revision = current_revision(con)
    assert revision is not None  # there are findings of something
    # a source that has no adj_close at all misses none
    counted = [rule for rule in ROW_RULES if rule.name != "missing_adj_close" or "adj_close" in revision.columns]
    bits = ", ".join(f"('{rule.name}', {rule.bit})" for rule in counted)
    query = sql("prices/quality").format(
        long_gap=LONG_GAP, factor_step=FACTOR_STEP, bits=bits, missing_ohlc=BITS["missing_ohlc"]
    )
    total = revision.rows + revision.quarantined_rows
    con.register("drifts", _drifts(con).to_arrow())
    found = []
    for name, n, examples in con.execute(query).fetchall():
        rule = BY_NAME[name]
        allowed = None if rule.severity == "soft" and rule.threshold >= 1 else math.floor(rule.threshold * total)
        found.append(QualityFinding(name, rule.severity, n, allowed, tuple(examples), rule.reason))
    con.unregister("drifts")
    found.sort(key=lambda finding: finding.severity)  # hard before soft; the most frequent first
    found += [
        QualityFinding(outcome["column"], "soft", int(outcome["observed"]), 0, (), outcome["reason"])
        for outcome in json.loads(revision.outcomes_json)
        if not outcome["success"] and outcome["column"] not in BY_NAME
    ]
    return found


def _drifts(con: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """The months in which returns or volumes are distributed unlike those of the twelve months before: `rule`, `example`, `date`.
    Half a row is added to each bin, so that an empty one is no infinity."""
    found = []
    for quantity in ("return", "volume"):
        cells = con.sql(f"FROM price_histograms WHERE quantity = '{quantity}' ORDER BY month").pl()
        wide = cells.pivot("bin", index="month", values="n", aggregate_function="sum").fill_null(0)
        n_MB = wide.drop("month").to_numpy().astype(float)
        for place, month in enumerate(wide["month"]):
            now_B, before_B = n_MB[place], n_MB[max(place - 12, 0) : place].sum(axis=0)
            if min(now_B.sum(), before_B.sum()) >= LEAST_ROWS:
                now_B, before_B = ((n_B + 0.5) / (n_B + 0.5).sum() for n_B in (now_B, before_B))
                psi = ((now_B - before_B) * np.log(now_B / before_B)).sum()
                if psi > MOST_PSI:
                    found.append((f"{quantity}_drift", f"PSI {psi:.2f} {month:%Y-%m-%d}", month))
    return pl.DataFrame(found, {"rule": pl.String, "example": pl.String, "date": pl.Date}, orient="row")


def quality_frames(con: duckdb.DuckDBPyConnection) -> dict[str, pl.DataFrame]:
    """What the page draws: `coverage` (date, symbols with a sound row), `quarantine` (month, first rule that a row broke, rows),
    and `revisions` of the active feed (created_at, rows that are sound, quarantined, new, restated)."""
    queries = {
        "coverage": "SELECT date, count(*) AS symbols FROM prices GROUP BY date ORDER BY date",
        "quarantine": "SELECT date_trunc('month', date)::DATE AS month, rule, count(*) AS rows FROM quarantined_prices "
        "WHERE date IS NOT NULL GROUP BY ALL ORDER BY rule, month",
        "revisions": "SELECT created_at, total_rows - quarantined_rows AS sound, quarantined_rows AS quarantined, "
        "new_rows AS new, ended_rows AS restated FROM revisions JOIN active_view USING (feed_id) ORDER BY created_at",
    }
    return {name: con.sql(query).pl() for name, query in queries.items()}
