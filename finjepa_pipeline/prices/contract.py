"""The contract that a batch of prices must keep: Great Expectations over aggregates that SQL computes."""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from finjepa_model.errors import FinJEPAError, did_you_mean
from finjepa_pipeline.prices.quality import ROW_RULES

BAD_SHARE = 0.5  # of the rows of a batch
STRAY_SHARE = 0.05  # of the rows of a batch, on days on which their exchange was closed: the calendar is wrong
WITHDRAWN_SHARE = 0.005  # of the rows of the revision before
MOVED_SHARE = 0.01  # of the symbols of a batch
FEW = 10  # rows that never refuse a batch, unless there are no others
ACCEPTABLE = ("withdrawn_rows", "moved_symbols")  # besides the rules

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
    most_moved, most_withdrawn = (
        max(5.0, MOVED_SHARE * aggregates["symbols"]),
        WITHDRAWN_SHARE * aggregates["rows_before"],
    )
    gone = "rows that were there before are in the delivery no longer: a history of prices does not shrink"
    return [
        expect("refused_rows", 0, max(BAD_SHARE * rows, FEW), "most rows are bad: is it the right file?", True),
        expect("sound_rows", 1, None, "a feed without a sound row is not one of prices", True),
        expect("withdrawn_rows", 0, most_withdrawn, gone, True),
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
    from great_expectations.core.expectation_suite import ExpectationSuite
    from great_expectations.expectations.core.expect_column_max_to_be_between import ExpectColumnMaxToBeBetween
    from great_expectations.expectations.metadata_types import FailureSeverity

    suite = ExpectationSuite(
        name="price_contract",
        expectations=[
            ExpectColumnMaxToBeBetween(
                column=one.column,
                min_value=one.low,
                max_value=one.high,
                severity=FailureSeverity(one.severity),
                meta={"place": place},
                notes=one.reason,
            )
            for place, one in enumerate(expected)
        ],
    )
    asset = context.data_sources.add_pandas("warehouse").add_dataframe_asset("revision")
    definition = gx.ValidationDefinition(
        name="prices", data=asset.add_batch_definition_whole_dataframe("aggregates"), suite=context.suites.add(suite)
    )
    frame = pd.DataFrame([{one.column: one.observed for one in expected}])
    results = context.validation_definitions.add(definition).run(batch_parameters={"dataframe": frame}).results
    places = (result.expectation_config.meta["place"] for result in results)
    return tuple(
        replace(expected[place], success=bool(result.success)) for place, result in zip(places, results, strict=True)
    )


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
