"""The door of the prices stage: from an outside source to sound, adjusted prices and a universe."""

import datetime
from collections.abc import Iterator, Sequence

import dagster as dg

from finjepa_pipeline.prices.calendar import sessions_behind
from finjepa_pipeline.prices.contract import (
    Outcome,
    QualityFinding,
    docs_page,
    quality_frames,
    quality_summary,
    write_docs,
)
from finjepa_pipeline.prices.derive import TABLES, UniverseConfig, derive
from finjepa_pipeline.prices.history import Revision, require_shown
from finjepa_pipeline.prices.ingest import ContractError, IngestReport, ingest, price_version
from finjepa_pipeline.prices.sources import PriceSourceConfig
from finjepa_pipeline.report.prices import write_quality_page
from finjepa_pipeline.runs import final, prices_of_run
from finjepa_pipeline.settings import Settings, SettingsResource
from finjepa_pipeline.warehouse import Warehouse

_CHECKS = (
    dg.AssetCheckSpec(
        "price_contract",
        asset="prices",
        blocking=True,
        description="What a batch of prices must keep before the tables show it, held by Great Expectations over aggregates.",
    ),
    dg.AssetCheckSpec(
        "price_freshness",
        asset="prices",
        blocking=True,
        description="The newest session is at most one closed session behind; blocks where max_age_sessions is set.",
    ),
)
_SPECS = {
    "raw_prices": (
        ["price_source"],
        "Every version of every row as its source gave it, with the revisions in which it was first and last seen.",
    ),
    "prices": (["raw_prices"], "The sound rows of the active feed at the active revision."),
    "quarantined_prices": (["raw_prices"], "The rows that broke a hard rule, with the rules that they broke."),
    "corporate_actions": (["prices"], "Dividends and splits found in the adjustment factor, and jumps without one."),
    "entities": (["prices"], "The companies behind the symbols, with when and how each ended."),
    "adjusted_prices": (
        ["prices", "corporate_actions", "entities"],
        "Total-return prices by entity: only ratios within an entity mean anything.",
    ),
    "universe": (["adjusted_prices"], "Who is eligible at the close of each date, from what was known by then."),
}


def _specs(*names: str) -> list[dg.AssetSpec]:
    return [
        dg.AssetSpec(
            name,
            deps=_SPECS[name][0],
            description=_SPECS[name][1],
            group_name="prices",
            owners=["team:finjepa"],
            kinds={"duckdb"},
            metadata={"dagster/table_name": f"main.{name}"},
        )
        for name in names
    ]


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
    name="ingest_prices", specs=_specs("raw_prices", "prices", "quarantined_prices"), check_specs=_CHECKS, pool="duckdb"
)
@final
def ingest_prices(
    context: dg.AssetExecutionContext, config: PriceSourceConfig, settings: SettingsResource, warehouse: Warehouse
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    try:
        report = ingest(warehouse, settings.get(), config)
    except ContractError as refusal:
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
    yield _freshness(report.revision, config.max_age_sessions)


@dg.multi_asset(name="derive_prices", specs=_specs(*TABLES), pool="duckdb")
@final
def derive_prices(
    context: dg.AssetExecutionContext, config: UniverseConfig, settings: SettingsResource, warehouse: Warehouse
) -> Iterator[dg.MaterializeResult]:
    prices = prices_of_run(context)
    report = derive(warehouse, config, prices)
    with warehouse.connect() as con:
        if prices is not None:
            require_shown(con, *prices)
        findings, frames = quality_summary(con), quality_frames(con)
    page = settings.get().reports / "prices.html"
    write_quality_page(page, findings, **frames)
    context.log.info(f"quality of the prices: {page}")
    shown = {
        "quality": _table(findings, "rule", "severity", "rows", "allowed", "examples", "reason"),
        "report": dg.MetadataValue.url(settings.get().address_of(page)),
        "path": dg.MetadataValue.path(page),
    }
    for name, rows in report.rows.items():
        yield dg.MaterializeResult(
            name,
            metadata={
                "dagster/row_count": rows,
                "reused": report.reused,
                **(shown if name == "adjusted_prices" else {}),
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
        **{name: getattr(report.moved, name) for name in ("withdrawn", "kept", "rejudged")},
        "calendar": revision.calendar,
        "accepted": ", ".join(revision.accepted),
        "reused": report.moved.added == report.moved.ended == 0,
        "dates": f"{revision.first_date} to {revision.last_date}",
        "columns": ", ".join(revision.columns),
        **({"note": report.note} if report.note else {}),
    }


def _check_result(outcomes: tuple[Outcome, ...], settings: Settings) -> dg.AssetCheckResult:
    """The verdict, with its Data Docs."""
    write_docs(outcomes, settings.home / "contract")
    broken = [one for one in outcomes if not one.success]
    blocks = any(one.severity == "critical" for one in broken)
    return dg.AssetCheckResult(
        passed=not broken,
        check_name="price_contract",
        asset_key="prices",
        severity=dg.AssetCheckSeverity.WARN if broken and not blocks else dg.AssetCheckSeverity.ERROR,
        description="; ".join(f"{one.severity}: {one}" for one in broken) or f"all {len(outcomes)} expectations hold",
        metadata={
            "data_docs": dg.MetadataValue.url(settings.address_of(docs_page(settings.home / "contract"))),
            "expectations": _table(
                outcomes, "column", "severity", "observed", "bounds", "success", "examples", "reason"
            ),
        },
    )


def _freshness(revision: Revision, limit: int | None) -> dg.AssetCheckResult:
    last, now = revision.last_date, datetime.datetime.now(datetime.UTC)
    ages = last is not None and revision.source not in ("sample", "synthetic")
    behind = sessions_behind(revision.calendar, last, now) if last and ages else 0
    return dg.AssetCheckResult(
        passed=behind <= (1 if limit is None else limit),
        check_name="price_freshness",
        asset_key="prices",
        severity=dg.AssetCheckSeverity.WARN if limit is None else dg.AssetCheckSeverity.ERROR,
        description=f"{behind} closed sessions after {last}" if ages else "a fixed history does not age",
        metadata={"sessions_behind": behind},
    )


def _table(items: Sequence[QualityFinding] | Sequence[Outcome], *names: str) -> dg.TableMetadataValue:
    """The attributes of these names, a row an item."""
    rows = ({name: getattr(item, name) for name in names} | {"examples": ", ".join(item.examples)} for item in items)
    return dg.TableMetadataValue(
        [dg.TableRecord(row) for row in rows], dg.TableSchema(list(map(dg.TableColumn, names)))
    )


ASSETS = [price_source, ingest_prices, derive_prices]
