"""The contract that a batch of prices must keep: Great Expectations over aggregates that SQL computes."""

import ast
import contextlib
import difflib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.rules import ROW_RULES, Rule

BAD_SHARE = 0.5  # of the rows of a batch
STRAY_SHARE = 0.05  # of the rows of a batch, on days on which their exchange was closed: the calendar is wrong
WITHDRAWN_SHARE = 0.005  # of the rows of the revision before
MOVED_SHARE = 0.01  # of the symbols of a batch
FEW = 10  # rows that never refuse a batch, unless there are no others
ACCEPTABLE = ("withdrawn_rows", "moved_symbols")  # besides the rules

Severity = Literal["critical", "warning"]


@dataclass(frozen=True)
class Expectation:
    """`column` of the batch's one-row aggregate lies in [low, high]; None is no bound."""

    column: str
    low: float | None
    high: float | None
    severity: Severity
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What became of an expectation. `error` is set when it could not be evaluated, which is not the same as failing."""

    column: str
    severity: Severity
    success: bool
    observed: float | None
    bounds: str
    reason: str
    error: str | None = None
    examples: tuple[str, ...] = ()

    @property
    def expectation(self) -> Expectation:
        """What was expected; `bounds` has the numbers as Python writes them."""
        low, high = ast.literal_eval(self.bounds)
        return Expectation(self.column, low, high, self.severity, self.reason)

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.column} could not be evaluated ({self.error})"
        such_as = f", such as {', '.join(self.examples)}" if self.examples else ""
        return f"{self.column} is {self.observed:g}, outside {self.bounds} ({self.reason}){such_as}"


def expectations(aggregates: dict[str, float], accepted: frozenset[str]) -> list[Expectation]:
    """What is expected of a batch with these aggregates (`sql/prices/aggregates.sql`). Critical is what makes the whole of it
    untrustworthy; bad rows among good ones go to quarantine, and a warning says how many.

    Args:
        accepted: rules and names of ACCEPTABLE that a person lets pass.
    """
    rows = aggregates["new_rows"]
    return [
        Expectation(
            "refused_rows", 0, max(BAD_SHARE * rows, FEW), "critical", "most rows are bad: is it the right file?"
        ),
        Expectation("sound_rows", 1, None, "critical", "a feed without a sound row is not one of prices"),
        Expectation(
            "withdrawn_rows",
            0,
            WITHDRAWN_SHARE * aggregates["rows_before"],
            "warning" if "withdrawn_rows" in accepted else "critical",
            "rows that were there before are in the delivery no longer: a history of prices does not shrink",
        ),
        Expectation(
            "moved_symbols",
            0,
            max(5.0, MOVED_SHARE * aggregates["symbols"]),
            "warning" if "moved_symbols" in accepted else "critical",
            "closes of the last 30 rows changed by more than 1 %",
        ),
        Expectation("restated_symbols", 0, 0, "warning", "closes of the last 30 rows changed by more than 1 bp"),
        Expectation(
            "rejudged_rows", 0, 0, "warning", "the rows after them put them into quarantine, or let them out of it"
        ),
        Expectation("kept_rows", 0, 0, "warning", "rows of earlier deliveries that this one does not cover are kept"),
        Expectation("missing_sessions", 0, 0, "warning", "every session of the exchange has prices"),
        Expectation("uneven_sessions", 0, 0, "warning", "a session has as many symbols as those before, within 10 %"),
        *(_of_rule(rule, rows, accepted) for rule in ROW_RULES),
    ]


def _of_rule(rule: Rule, rows: float, accepted: frozenset[str]) -> Expectation:
    if rule.name == "stray_session" and rule.name not in accepted:
        return Expectation(rule.name, 0, max(STRAY_SHARE * rows, FEW), "critical", rule.reason)
    return Expectation(rule.name, 0, most_allowed(rule, rows), "warning", rule.reason)


def most_allowed(rule: Rule, rows: float) -> float:
    """How many of so many rows may break a rule before it warns."""
    return rule.threshold * rows


def accepted_names(names: Sequence[str]) -> frozenset[str]:
    """The names of `--accept`.

    Raises:
        FinJEPAError: if one of them can refuse nothing.
    """
    known = [rule.name for rule in ROW_RULES if rule.severity == "hard"] + list(ACCEPTABLE)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise FinJEPAError(f"nothing is refused for {name!r}: {hint}")
    return frozenset(names)


def judge(aggregates: dict[str, float], expected: list[Expectation]) -> tuple[Outcome, ...]:
    """Validate one row of aggregates."""
    results = _validation(aggregates, expected, _context()).results
    return tuple(_outcome(result, expected, aggregates) for result in results)


def write_docs(outcomes: tuple[Outcome, ...], folder: Path) -> None:
    """Make the Data Docs at `docs_page(folder)` those of `outcomes`, unless they are so already.

    They take longer than the judgement, so they are written when the warehouse is open to others again; from what is stored
    of a revision, so that a process that is killed in between loses none.
    """
    made_of = hashlib.sha256(repr(outcomes).encode()).hexdigest()
    site, mark = docs_page(folder).parent, "made-of.txt"
    with contextlib.suppress(OSError):
        if (site / mark).read_text(encoding="utf-8") == made_of:
            return
    folder.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder))
    base = str(beside / "docs").replace("$", r"\$")  # Great Expectations would put variables of the environment there
    try:
        context = _context()
        context.add_data_docs_site(
            "local_site",
            {
                "class_name": "SiteBuilder",
                "show_how_to_buttons": False,
                "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": base},
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            },
        )
        observed = {outcome.column: outcome.observed for outcome in outcomes}
        _validation(observed, [outcome.expectation for outcome in outcomes], context)
        context.build_data_docs()
        (beside / "docs" / mark).write_text(made_of, encoding="utf-8")
        if site.exists():
            os.replace(site, beside / "old")
        os.replace(beside / "docs", site)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _context() -> Any:
    """A project of Great Expectations that keeps nothing on disk: a killed process leaves nothing to stumble over."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx  # eight seconds of import: only where something is to be judged

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}  # pyright: ignore[reportAttributeAccessIssue]
    for site in list(context.list_data_docs_sites()):
        context.delete_data_docs_site(site)  # it would be written to the temporary folder
    return context


def _validation(aggregates: Mapping[str, float | None], expected: list[Expectation], context: Any) -> Any:
    import great_expectations as gx
    import pandas as pd
    from great_expectations.core.expectation_suite import ExpectationSuite
    from great_expectations.expectations.core.expect_column_max_to_be_between import ExpectColumnMaxToBeBetween
    from great_expectations.expectations.metadata_types import FailureSeverity

    suite = ExpectationSuite(
        name="price_contract",
        expectations=[
            ExpectColumnMaxToBeBetween(
                column=expectation.column,
                min_value=expectation.low,
                max_value=expectation.high,
                severity=FailureSeverity(expectation.severity),
                meta={"place": place},
                notes=expectation.reason,
            )
            for place, expectation in enumerate(expected)
        ],
    )
    asset = context.data_sources.add_pandas("warehouse").add_dataframe_asset("revision")
    definition = gx.ValidationDefinition(
        name="prices", data=asset.add_batch_definition_whole_dataframe("aggregates"), suite=context.suites.add(suite)
    )
    return context.validation_definitions.add(definition).run(
        batch_parameters={"dataframe": pd.DataFrame([dict(aggregates)])}
    )


def docs_page(folder: Path) -> Path:
    """The front page of the Data Docs."""
    return folder / "docs" / "index.html"


def _outcome(result: Any, expected: list[Expectation], aggregates: dict[str, float]) -> Outcome:
    expectation = expected[result.expectation_config.meta["place"]]
    return Outcome(
        column=expectation.column,
        severity=expectation.severity,
        success=bool(result.success),
        observed=aggregates.get(expectation.column),
        bounds=f"[{expectation.low}, {expectation.high}]",
        reason=expectation.reason,
        error=_raised(result.exception_info),
    )


def _raised(info: dict[str, Any]) -> str | None:
    """The exception inside a result, if any. An expectation that raised reports success=False like one that failed."""
    if info.get("raised_exception"):
        return str(info.get("exception_message"))
    for inner in info.values():  # keyed by metric when a metric raised
        if isinstance(inner, dict) and inner.get("raised_exception"):
            return str(inner.get("exception_message"))
    return None
