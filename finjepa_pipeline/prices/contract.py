"""The contract that a batch of prices must keep: Great Expectations over aggregates that SQL computes."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finjepa_pipeline.prices.rules import Rule

QUARANTINED_SHARE = 0.01  # of the rows of a batch
SHRINKAGE = 0.005  # of the rows of the revision before
MOVED_SHARE = 0.01  # of the symbols of a batch

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

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.column} could not be evaluated ({self.error})"
        return f"{self.column} is {self.observed:g}, outside {self.bounds} ({self.reason})"


def expectations(aggregates: dict[str, float], rules: list[Rule]) -> list[Expectation]:
    """What is expected of a batch with these aggregates (`store.revision_aggregates`)."""
    rows = aggregates["new_rows"]
    # Shares say nothing of a small file: up to a hundred bad rows pass, unless they are half of it.
    few = min(100, rows // 2)
    moved = max(5.0, MOVED_SHARE * aggregates["symbols"])
    return [
        Expectation(
            "quarantined_rows",
            0,
            max(QUARANTINED_SHARE * rows, few),
            "critical",
            "so many bad rows are the file's fault",
        ),
        Expectation("sound_rows", 1, None, "critical", "a feed without a sound row is not one of prices"),
        Expectation("rows_to_rows_before", 1 - SHRINKAGE, None, "critical", "a history of prices does not shrink"),
        Expectation("moved_symbols", 0, moved, "critical", "closes of the last 30 rows changed by more than 1 %"),
        Expectation("restated_symbols", 0, 0, "warning", "closes of the last 30 rows changed by more than 1 bp"),
        Expectation("missing_sessions", 0, 0, "warning", "every session of the exchange has prices"),
        Expectation("uneven_sessions", 0, 0, "warning", "a session has as many symbols as those before, within 10 %"),
        *(
            Expectation(rule.rule, 0, max(rule.threshold * rows, few), "critical", rule.reason)
            if rule.severity == "hard"
            else Expectation(rule.rule, 0, rule.threshold * rows, "warning", rule.reason)
            for rule in rules
            if rule.scope != "history"
        ),
    ]


def judge(aggregates: dict[str, float], expected: list[Expectation], folder: Path) -> tuple[Outcome, ...]:
    """Validate one row of aggregates; Great Expectations writes its Data Docs to `docs_page(folder)`."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx  # eight seconds of import: only where something is to be judged
    import pandas as pd
    from great_expectations.checkpoint.actions import UpdateDataDocsAction
    from great_expectations.core.expectation_suite import ExpectationSuite
    from great_expectations.expectations.core.expect_column_max_to_be_between import ExpectColumnMaxToBeBetween
    from great_expectations.expectations.metadata_types import FailureSeverity

    # A fresh project each time: a killed process leaves half-written files, over which Great Expectations stumbles.
    project = folder / ".tmp-project"
    shutil.rmtree(project, ignore_errors=True)
    project.mkdir(parents=True)
    context = gx.get_context(mode="file", project_root_dir=project)
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}  # pyright: ignore[reportAttributeAccessIssue]
    suite = ExpectationSuite(name="price_contract")
    for place, expectation in enumerate(expected):
        suite.add_expectation(
            ExpectColumnMaxToBeBetween(
                column=expectation.column,
                min_value=expectation.low,
                max_value=expectation.high,
                severity=FailureSeverity(expectation.severity),
                meta={"place": place},
                notes=expectation.reason,
            )
        )
    asset = context.data_sources.add_or_update_pandas("warehouse").add_dataframe_asset("revision")
    validation = gx.ValidationDefinition(
        name="prices",
        data=asset.add_batch_definition_whole_dataframe("aggregates"),
        suite=context.suites.add_or_update(suite),
    )
    checkpoint = gx.Checkpoint(
        name="prices",
        validation_definitions=[context.validation_definitions.add_or_update(validation)],
        actions=[UpdateDataDocsAction(name="docs")],
    )
    run = context.checkpoints.add_or_update(checkpoint).run(batch_parameters={"dataframe": pd.DataFrame([aggregates])})
    (found,) = run.run_results.values()
    shutil.rmtree(docs_page(folder).parent, ignore_errors=True)
    os.replace(project / "gx" / "uncommitted" / "data_docs" / "local_site", docs_page(folder).parent)
    shutil.rmtree(project)
    return tuple(_outcome(result, expected, aggregates) for result in found.results)


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
