"""The door of the prices stage: from an outside source to sound, adjusted prices and a universe."""

import datetime
from collections.abc import Iterator, Sequence

import dagster as dg

from finjepa_pipeline.prices.calendar import sessions_behind
from finjepa_pipeline.prices.contract import Outcome, docs_page, write_docs
from finjepa_pipeline.prices.derive import UniverseConfig, derive
from finjepa_pipeline.prices.history import require_shown
from finjepa_pipeline.prices.ingest import ContractError, IngestReport, ingest, price_version
from finjepa_pipeline.prices.quality import coverage, quality_summary, quarantine_by_month, revision_history
from finjepa_pipeline.prices.sources import PriceSourceConfig
from finjepa_pipeline.report.prices import write_quality_page, write_refusal
from finjepa_pipeline.run_inputs import prices_of_run
from finjepa_pipeline.runs import final
from finjepa_pipeline.settings import Settings, SettingsResource
from finjepa_pipeline.warehouse import Warehouse

_OWNERS = ["team:finjepa"]
_FRESHNESS = dg.AssetCheckSpec(
    "price_freshness",
    asset="prices",
    blocking=True,
    description="The newest session is at most one closed session behind; blocks where max_age_sessions is set.",
)
_CHECK = dg.AssetCheckSpec(
    "price_contract",
    asset="prices",
    blocking=True,
    description="What a batch of prices must keep before the tables show it, held by Great Expectations over aggregates.",
)


def _spec(name: str, deps: list[str], description: str, *kinds: str) -> dg.AssetSpec:
    return dg.AssetSpec(
        name,
        deps=deps,
        description=description,
        group_name="prices",
        owners=_OWNERS,
        kinds={"duckdb", *kinds},
        metadata={"dagster/table_name": f"main.{name}"},
    )


@dg.observable_source_asset(
    name="price_source",
    group_name="prices",
    description="The prices outside: a Hub data set, a folder of files or the embedded sample. "
    "Its version is the Hub commit or the hash of the files.",
    tags={"dagster/kind/table": ""},
)
def price_source(settings: SettingsResource, warehouse: Warehouse) -> dg.DataVersion:
    return dg.DataVersion(price_version(warehouse, settings.get()))


@dg.multi_asset(
    name="ingest_prices",
    specs=[
        _spec(
            "raw_prices",
            ["price_source"],
            "Every version of every row as its source gave it, with the revisions in which it was first and last seen.",
        ),
        _spec("prices", ["raw_prices"], "The sound rows of the active feed at the active revision."),
        _spec("quarantined_prices", ["raw_prices"], "The rows that broke a hard rule, with the rules that they broke."),
    ],
    check_specs=[_CHECK, _FRESHNESS],
    pool="duckdb",
)
@final
def ingest_prices(
    context: dg.AssetExecutionContext, config: PriceSourceConfig, settings: SettingsResource, warehouse: Warehouse
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    try:
        report = ingest(warehouse, settings.get(), config)
    except ContractError as refusal:
        page = settings.get().reports / "refused-prices.html"
        write_refusal(page, refusal.feed, str(refusal), refusal.outcomes)
        context.log.error(f"why the prices are refused: {page}")
        yield _check_result(refusal.outcomes, settings.get())
        raise
    if report.note:
        context.log.warning(report.note)
    context.log.info(
        f"{report.revision.feed}: {report.moved.added:,} new rows; now {report.revision.rows:,} sound and "
        f"{report.revision.quarantined_rows:,} in quarantine"
    )
    with warehouse.connect() as con:
        require_shown(con, report.revision.feed, report.revision.data_version)
        [(stored,)] = con.execute("SELECT count(*) FROM price_history").fetchall()
    for name, rows in (
        ("raw_prices", stored),
        ("prices", report.revision.rows),
        ("quarantined_prices", report.revision.quarantined_rows),
    ):
        yield dg.MaterializeResult(
            name,
            metadata={"dagster/row_count": rows, **_revision_metadata(report)},
            data_version=dg.DataVersion(report.revision.data_version),
        )
    yield _check_result(report.outcomes, settings.get())
    yield _freshness(report, config.max_age_sessions)


@dg.multi_asset(
    name="derive_prices",
    specs=[
        _spec(
            "corporate_actions",
            ["prices"],
            "Dividends and splits found in the adjustment factor, and jumps without one.",
        ),
        _spec("entities", ["prices"], "The companies behind the symbols, with when and how each ended."),
        _spec(
            "adjusted_prices",
            ["prices", "corporate_actions", "entities"],
            "Total-return prices by entity: only ratios within an entity mean anything.",
        ),
        _spec(
            "universe", ["adjusted_prices"], "Who is eligible at the close of each date, from what was known by then."
        ),
    ],
    pool="duckdb",
)
@final
def derive_prices(
    context: dg.AssetExecutionContext, config: UniverseConfig, settings: SettingsResource, warehouse: Warehouse
) -> Iterator[dg.MaterializeResult]:
    prices = prices_of_run(context)
    report = derive(warehouse, config, prices)
    with warehouse.connect() as con:
        if prices is not None:
            require_shown(con, *prices)
        findings = quality_summary(con)
        frames = coverage(con), quarantine_by_month(con), revision_history(con)
    page = settings.get().reports / "prices.html"
    write_quality_page(page, findings, *frames)
    context.log.info(f"quality of the prices: {page}")
    quality = _table(
        ("rule", "severity", "rows", "allowed", "examples", "reason"),
        [
            (found.rule, found.severity, found.rows, found.allowed, ", ".join(found.examples), found.reason)
            for found in findings
        ],
    )
    for name, rows in report.rows.items():
        yield dg.MaterializeResult(
            name,
            metadata={
                "dagster/row_count": rows,
                "reused": report.reused,
                **({"quality": quality, "report": dg.MetadataValue.path(page)} if name == "adjusted_prices" else {}),
            },
            data_version=dg.DataVersion(report.data_version),
        )


def _revision_metadata(report: IngestReport) -> dict[str, dg.MetadataValue | int | str | bool]:
    revision = report.revision
    return {
        "feed": revision.feed,
        "revision": revision.number,
        "version": revision.version,
        "data_version": revision.data_version,
        "new_rows": report.moved.added,
        "ended_rows": report.moved.ended,
        **{name: getattr(report.moved, name) for name in ("withdrawn", "kept", "held_back", "released")},
        "calendar": revision.calendar,
        "accepted": ", ".join(revision.accepted),
        "reused": report.moved.added == report.moved.ended == 0,
        "dates": f"{revision.first_date} to {revision.last_date}",
        "columns": ", ".join(revision.columns),
        **({"note": report.note} if report.note else {}),
    }


def _check_result(outcomes: tuple[Outcome, ...], settings: Settings) -> dg.AssetCheckResult:
    """The verdict, with its Data Docs. An expectation that could not be evaluated blocks as well, and says so: it is not
    known to hold."""
    write_docs(outcomes, settings.home / "contract")
    errored = [outcome for outcome in outcomes if outcome.error is not None]
    failed = [outcome for outcome in outcomes if outcome.error is None and not outcome.success]
    critical = [outcome for outcome in failed if outcome.severity == "critical"] + errored
    lines = [f"errored: {outcome}" for outcome in errored] + [f"{outcome.severity}: {outcome}" for outcome in failed]
    return dg.AssetCheckResult(
        passed=not errored and not failed,
        check_name=_CHECK.name,
        asset_key="prices",
        severity=dg.AssetCheckSeverity.WARN if failed and not critical else dg.AssetCheckSeverity.ERROR,
        description="; ".join(lines) or f"all {len(outcomes)} expectations hold",
        metadata={
            "data_docs": dg.MetadataValue.path(docs_page(settings.home / "contract")),
            "expectations": _table(
                ("expectation", "severity", "observed", "bounds", "result", "examples", "reason"),
                [
                    (
                        outcome.column,
                        outcome.severity,
                        outcome.observed,
                        outcome.bounds,
                        "errored" if outcome.error else "holds" if outcome.success else "fails",
                        ", ".join(outcome.examples),
                        outcome.reason,
                    )
                    for outcome in outcomes
                ],
            ),
        },
    )


def _freshness(report: IngestReport, limit: int | None) -> dg.AssetCheckResult:
    fixed = report.revision.source in ("sample", "synthetic")
    last = report.revision.last_date
    behind = (
        0
        if fixed or last is None
        else sessions_behind(report.revision.calendar, last, datetime.datetime.now(datetime.UTC))
    )
    return dg.AssetCheckResult(
        passed=behind <= (1 if limit is None else limit),
        check_name=_FRESHNESS.name,
        asset_key="prices",
        severity=dg.AssetCheckSeverity.WARN if limit is None else dg.AssetCheckSeverity.ERROR,
        description="a fixed history does not age" if fixed else f"{behind} closed sessions after {last}",
        metadata={"sessions_behind": behind},
    )


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str | float | None, ...]]) -> dg.TableMetadataValue:
    return dg.TableMetadataValue(
        [dg.TableRecord(dict(zip(columns, row, strict=True))) for row in rows],
        dg.TableSchema([dg.TableColumn(name) for name in columns]),
    )


ASSETS = [price_source, ingest_prices, derive_prices]
CHECKS: list[dg.AssetChecksDefinition] = []
