"""The contract that a batch of prices must keep: Great Expectations over aggregates that SQL computes."""

import os
from dataclasses import dataclass
from typing import Any, Literal

from finjepa_pipeline.prices.rules import Rule

QUARANTINED_SHARE = 0.01  # of the rows of a batch
SHRINKAGE = 0.005  # of the rows of the revision before

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
    allowed = max(QUARANTINED_SHARE * rows, min(100, rows // 2))
    found = [
        Expectation(
            "quarantined_rows", 0, allowed, "critical", "so many bad rows are the file's fault, not the market's"
        )
    ]
    if "rows_to_rows_before" in aggregates:
        found.append(
            Expectation("rows_to_rows_before", 1 - SHRINKAGE, None, "critical", "a history of prices does not shrink")
        )
    found += [Expectation(rule.rule, 0, rule.threshold * rows, "warning", rule.reason) for rule in rules]
    return found


def judge(aggregates: dict[str, float], expectations: list[Expectation]) -> tuple[Outcome, ...]:
    """Validate one row of aggregates against the expectations."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx  # eight seconds of import: only where something is to be judged
    import pandas as pd
    from great_expectations.core.expectation_suite import ExpectationSuite
    from great_expectations.expectations.core.expect_column_values_to_be_between import ExpectColumnValuesToBeBetween
    from great_expectations.expectations.metadata_types import FailureSeverity

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}  # pyright: ignore[reportAttributeAccessIssue]
    asset = context.data_sources.add_pandas("warehouse").add_dataframe_asset("batch")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": pd.DataFrame([aggregates])})
    suite = ExpectationSuite(name="price_contract")
    for place, expectation in enumerate(expectations):
        suite.add_expectation(
            ExpectColumnValuesToBeBetween(
                column=expectation.column,
                min_value=expectation.low,
                max_value=expectation.high,
                severity=FailureSeverity(expectation.severity),
                meta={"place": place},
                notes=expectation.reason,
            )
        )
    results = batch.validate(suite).results
    outcomes = [_outcome(result, expectations, aggregates) for result in results]
    return tuple(outcomes)


def _outcome(result: Any, expectations: list[Expectation], aggregates: dict[str, float]) -> Outcome:
    expectation = expectations[result.expectation_config.meta["place"]]
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
