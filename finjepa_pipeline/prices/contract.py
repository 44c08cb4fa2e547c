"""What prices must keep: rules of rows and of histories, expectations of a batch, and what of the active prices broke them.

A rule with a number has a bit in `broken` of the rows: those with a condition, SQL over the columns of `sql/prices/scan.sql`, are
evaluated in one pass when a file is read, the others after loading, from more than one row. A rule without a number is found when
whole histories are derived. A `hard` rule moves the row to `quarantined_prices`. Above the threshold, a share of the rows, a
rule warns. What refuses a delivery are expectations: Great Expectations over aggregates that SQL computes.
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import duckdb
import polars as pl

from finjepa_model.errors import FinJEPAError, did_you_mean
from finjepa_model.features.adjust import FACTOR_STEP, LONG_GAP
from finjepa_model.features.frame import UNSOUND
from finjepa_pipeline.prices.history import current_revision
from finjepa_pipeline.warehouse import sql

BAD_SHARE = 0.5  # of the rows of a batch
STRAY_SHARE = 0.05  # of the rows of a batch, on days on which their exchange was closed: the calendar is wrong
WITHDRAWN_SHARE = 0.005  # of the rows of the revision before
MOVED_SHARE = 0.01  # of the symbols of a batch
FEW = 10  # rows that never refuse a batch, unless there are no others
ACCEPTABLE = ("withdrawn_rows", "moved_symbols")  # besides the rules
MOST_PSI = 0.25  # population stability index of a month against the twelve before it
DRIFT_ROWS = 1_000  # of a month, and of those before it, for them to be compared
JUDGEMENT = 2  # raise it when a stored row would be judged otherwise: the next ingestion judges all rows again


@dataclass(frozen=True)
class Rule:
    """`number` is the rule's bit in stored rows, and is never given to another rule; hard rules come first, without a gap."""

    number: int | None
    name: str
    severity: Literal["hard", "soft"]
    threshold: float
    reason: str
    condition: str | None = None

    @property
    def bit(self) -> int:
        assert self.number is not None  # of the rows
        return 1 << self.number


# fmt: off
ROW_RULES = (
    Rule(0, "unreadable_date", "hard", 0.0, "a row without a day belongs nowhere; dates are written YYYY-MM-DD", "date IS NULL"),
    Rule(1, "date_out_of_range", "hard", 0.0,
         "daily electronic prices begin in 1962, and nobody knows tomorrow's (a day is allowed for time zones)",
         "date < DATE '1962-01-01' OR date > current_date + 1"),
    Rule(2, "unreadable_number", "hard", 0.0, "text where a number belongs",
         "unreadable IS NOT NULL AND date IS NOT NULL"),
    Rule(3, "bad_symbol", "hard", 0.0,
         "a symbol has 1 to 64 characters, no control character, and does not end in #2 or another number"),
    Rule(4, "close_not_positive", "hard", 0.0001,
         "a null, NaN, infinite, zero or negative close has no return; no share ever cost 1e12",
         UNSOUND["close_not_positive"]),
    Rule(5, "adj_close_not_positive", "hard", 0.0001,
         "the adjustment factor adj_close/close must be positive and finite; null or NaN is missing",
         UNSOUND["adj_close_not_positive"]),
    Rule(6, "ohlc_order", "hard", 0.0001,
         "high is the highest and low the lowest price of a day; more than 1 % off is a bad tick",
         UNSOUND["ohlc_order"]),
    Rule(7, "volume_not_a_count", "hard", 0.0001,
         "a volume is not negative, and no market trades 1e18 units a day; fractions are fine",
         UNSOUND["volume_not_a_count"]),
    Rule(8, "duplicate", "hard", 0.0,
         "one row a symbol and day; the one with the fewest broken rules, then the smallest values, stays"),
    Rule(9, "factor_step", "hard", 0.0001,
         "adj_close/close moved by more than a hundredfold, and came back within five rows"),
    Rule(10, "impossible_move", "hard", 0.0001,
         "more than +300 % or -90 %, and back within five rows: a bad tick; until it comes back it is sound, and not tradable"),
    Rule(11, "stray_session", "hard", 0.0001, "the exchange of the symbol was closed that day"),
    # Rules of a whole session: rows that come later release it.
    Rule(12, "thin_session", "hard", 0.0001,
         "fewer than a fifth of the symbols of the sessions before: the vendor's file is a fragment"),
    Rule(13, "late_session", "hard", 0.0001,
         "the newest session has fewer than nine tenths of the symbols of those before: the vendor is late"),
    Rule(16, "missing_ohlc", "soft", 0.0005, "a null, zero or negative open, high or low is read as missing",
         "(open_ok IS NULL OR high_ok IS NULL OR low_ok IS NULL) AND has_ohlc"),
    Rule(17, "ohlc_order_slight", "soft", 0.0001, "rounding of adjusted prices; the row stays",
         "high_ok < (1 - 1e-6) * greatest(open_ok, close, low_ok) OR low_ok > (1 + 1e-6) * least(open_ok, close, high_ok)"),
    Rule(18, "zero_volume", "soft", 0.05, "nobody traded: the close is a quotation, and the day is not tradable",
         "volume = 0"),
    Rule(19, "missing_adj_close", "soft", 0.0005, "the factor of the day is unknown, and so is its return",
         "coalesce(isnan(adj_close), has_adj_close)"),
)
HISTORY_RULES = (
    Rule(None, "large_return", "soft", 0.001, "an adjusted close moved by more than 50 % in a day"),
    Rule(None, "suspected_split", "soft", 0.0,
         "the close jumps as a split would, and nothing adjusts it: not tradable that day, not repaired; deliver an adj_close"),
    Rule(None, "unexplained_jump", "soft", 0.001,
         "a jump that is no split: a spin-off that is not adjusted, a merger, or news"),
    Rule(None, "stale_close", "soft", 0.02, "the close has not moved for five sessions: not tradable"),
    Rule(None, "busy_factor", "soft", 0.0,
         "more than 14 dividends and splits of a symbol in a year: monthly payers are the ceiling"),
    Rule(None, "sparse_ohlc", "soft", 0.0, "a symbol whose open, high or low is missing on more than 1 % of its days"),
    Rule(None, "return_drift", "soft", 0.0,
         "the returns of a month are distributed unlike those of the year before (PSI > 0.25)"),
    Rule(None, "volume_drift", "soft", 0.0,
         "the volumes of a month are distributed unlike those of the year before (PSI > 0.25)"),
    Rule(None, "delisted", "soft", 1.0, "a history that ends more than ten sessions before the last one"),
    Rule(None, "ticker_reused", "soft", 1.0,
         "a symbol that came back after a year, or after more than 60 sessions at another price: another company"),
    Rule(None, "price_step", "soft", 0.0,
         "the close jumps as after a split or a change of unit, or fourfold on ordinary volume: is it one? Deliver an adj_close "
         "that says so, or prices in one unit; until then the history ends at the close before, at no loss, and another begins"),
    Rule(None, "extreme_move", "soft", 0.0,
         "a close beyond +300 % or -90 % in a day: it counts at its price and is not tradable that day; if it comes back "
         "within five rows, a later revision puts it into quarantine"),
)
# fmt: on
BY_NAME = {rule.name: rule for rule in (*ROW_RULES, *HISTORY_RULES)}


def bits(*names: str) -> int:
    """The bits of some rules."""
    return sum(BY_NAME[name].bit for name in names)


_HARD = sum(rule.bit for rule in ROW_RULES if rule.severity == "hard")
# What queries call the bits: each rule by its name, and sums of them.
BITS = {rule.name: rule.bit for rule in ROW_RULES} | {
    "hard": _HARD,  # of a row in quarantine, as in the views of schema.sql
    "ticks": bits("impossible_move", "factor_step"),
    "sessions": bits("thin_session", "late_session"),
    # What a row is by itself; ticks and sessions depend on rows that may come later.
    "firm": _HARD & ~bits("impossible_move", "factor_step", "thin_session", "late_session"),
    # A row that belongs to no symbol or no session.
    "unplaced": bits("unreadable_date", "date_out_of_range", "bad_symbol", "duplicate", "stray_session"),
}
BROKEN_ROW = " | ".join(
    f"CASE WHEN {rule.condition} THEN {rule.bit} ELSE 0 END" for rule in ROW_RULES if rule.condition
)


# The expectations of a batch

Severity = Literal["critical", "warning"]


@dataclass(frozen=True)
class Outcome:
    """An expectation, that `column` of the batch's one-row aggregate lies in [low, high] (None is no bound), and what became
    of it."""

    column: str
    low: float | None
    high: float | None
    severity: Severity
    reason: str
    observed: float | None = None
    success: bool = True
    examples: tuple[str, ...] = ()

    @property
    def bounds(self) -> str:
        return f"[{self.low}, {self.high}]"

    def __str__(self) -> str:
        such_as = f", such as {', '.join(self.examples)}" if self.examples else ""
        return f"{self.column} is {self.observed:g}, outside {self.bounds} ({self.reason}){such_as}"


def expectations(aggregates: dict[str, float], accepted: frozenset[str]) -> list[Outcome]:
    """What is expected of a batch with these aggregates (`sql/prices/aggregates.sql`). Critical is what makes the whole of it
    untrustworthy; bad rows among good ones go to quarantine, and a warning says how many.

    Args:
        accepted: rules and names of ACCEPTABLE that a person lets pass.
    """
    rows = aggregates["new_rows"]

    def expect(column: str, low: float | None, high: float | None, reason: str, critical: bool = False) -> Outcome:
        severity: Severity = "critical" if critical and column not in accepted else "warning"
        return Outcome(column, low, high, severity, reason, observed=aggregates[column])

    strays = {} if "stray_session" in accepted else {"stray_session": max(STRAY_SHARE * rows, FEW)}
    most_moved = max(5.0, MOVED_SHARE * aggregates["symbols"])
    gone = "rows that were there before are in the delivery no longer: a history of prices does not shrink"
    return [
        expect("refused_rows", 0, max(BAD_SHARE * rows, FEW), "most rows are bad: is it the right file?", True),
        expect("sound_rows", 1, None, "a feed without a sound row is not one of prices", True),
        expect("withdrawn_rows", 0, WITHDRAWN_SHARE * aggregates["rows_before"], gone, True),
        expect("moved_symbols", 0, most_moved, "closes of the last 30 rows changed by more than 1 %", True),
        expect("rejudged_rows", 0, 0, "the rows after them put them into quarantine, or let them out of it"),
        expect("kept_rows", 0, 0, "rows of earlier deliveries that this one does not cover are kept"),
        expect("missing_sessions", 0, 0, "every session of the exchange has prices"),
        expect("uneven_sessions", 0, 0, "a session has as many symbols as those before, within 10 %"),
        *(
            expect(rule.name, 0, strays.get(rule.name, rule.threshold * rows), rule.reason, rule.name in strays)
            for rule in ROW_RULES
        ),
    ]


def accepted_names(names: Sequence[str]) -> frozenset[str]:
    """The names of `--accept`.

    Raises:
        FinJEPAError: if one of them can refuse nothing.
    """
    known = [rule.name for rule in ROW_RULES if rule.severity == "hard"] + list(ACCEPTABLE)
    for name in names:
        if name not in known:
            raise FinJEPAError(f"nothing is refused for {name!r}; {did_you_mean(name, known)}")
    return frozenset(names)


def judge(expected: Sequence[Outcome], context: Any = None) -> tuple[Outcome, ...]:
    """Validate the observed values: the same outcomes, with success.

    Args:
        context: a project of Great Expectations that keeps the validation.
    """
    context = context or _context()
    import great_expectations as gx
    import pandas as pd

    bounds: list[Any] = [
        gx.expectations.ExpectColumnMaxToBeBetween(  # pyright: ignore[reportPrivateImportUsage]
            column=one.column,
            min_value=one.low,
            max_value=one.high,
            severity=one.severity,  # pyright: ignore[reportArgumentType]
            meta={"place": place},
            notes=one.reason,
        )
        for place, one in enumerate(expected)
    ]
    suite = context.suites.add(gx.ExpectationSuite("price_contract", expectations=bounds))
    asset = context.data_sources.add_pandas("warehouse").add_dataframe_asset("revision")
    batch = asset.add_batch_definition_whole_dataframe("aggregates")
    definition = context.validation_definitions.add(gx.ValidationDefinition(name="prices", data=batch, suite=suite))
    frame = pd.DataFrame([{one.column: one.observed for one in expected}])
    results = definition.run(batch_parameters={"dataframe": frame}).results
    places = [result.expectation_config.meta["place"] for result in results]
    return tuple(replace(expected[p], success=bool(one.success)) for p, one in zip(places, results, strict=True))


def write_docs(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Make the Data Docs at `docs_page(folder)` those of `outcomes`, unless they are so already.

    They take longer than the judgement, so they are written when the warehouse is open to others again; from what is stored
    of a revision, so that a process that is killed in between loses none.
    """
    site, mark = docs_page(folder).parent, f"{hashlib.sha256(repr(outcomes).encode()).hexdigest()}.made"
    if (site / mark).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder, ignore_cleanup_errors=True) as beside:
        context = _context()
        context.add_data_docs_site(
            "local_site",
            {
                "class_name": "SiteBuilder",
                "show_how_to_buttons": False,
                # Great Expectations would put variables of the environment into a path
                "store_backend": {
                    "class_name": "TupleFilesystemStoreBackend",
                    "base_directory": f"{beside}/docs".replace("$", r"\$"),
                },
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            },
        )
        judge(outcomes, context)
        context.build_data_docs()
        Path(beside, "docs", mark).touch()
        if site.exists():
            os.replace(site, Path(beside, "old"))
        os.replace(Path(beside, "docs"), site)


def docs_page(folder: Path) -> Path:
    """The front page of the Data Docs."""
    return folder / "docs" / "index.html"


def _context() -> Any:
    """A project of Great Expectations that keeps nothing on disk: a killed process leaves nothing to stumble over."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx  # eight seconds of import: only where something is to be judged

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}  # pyright: ignore[reportAttributeAccessIssue]
    for site in list(context.list_data_docs_sites()):
        context.delete_data_docs_site(site)  # it would be written to the temporary folder
    return context


# What of the active prices broke them


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
    of_rows = ", ".join(f"('{rule.name}', {rule.bit})" for rule in counted)
    numbers = {"long_gap": LONG_GAP, "factor_step": FACTOR_STEP, "most_psi": MOST_PSI, "drift_rows": DRIFT_ROWS}
    query = sql("prices/quality").format(bits=of_rows, missing_ohlc=BITS["missing_ohlc"], **numbers)
    total = revision.rows + revision.quarantined_rows
    found = []
    for name, n, examples in con.execute(query).fetchall():
        rule = BY_NAME[name]
        allowed = None if rule.severity == "soft" and rule.threshold >= 1 else math.floor(rule.threshold * total)
        found.append(QualityFinding(name, rule.severity, n, allowed, tuple(examples), rule.reason))
    found.sort(key=lambda finding: finding.severity)  # hard before soft; the most frequent first
    found += [
        QualityFinding(outcome["column"], "soft", int(outcome["observed"]), 0, (), outcome["reason"])
        for outcome in json.loads(revision.outcomes_json)
        if not outcome["success"] and outcome["column"] not in BY_NAME
    ]
    return found


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
