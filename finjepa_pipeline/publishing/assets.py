"""Assets of publishing: challenger_audit, champion, hub_release, daily_decision, live_record, its release, retention."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import dagster as dg
from pydantic import Field

from finjepa_model.data.panel import Panel
from finjepa_pipeline.backtest.assets import check_result
from finjepa_pipeline.backtest.audit import audit_challenger
from finjepa_pipeline.backtest.blocks import checkpoint_folder
from finjepa_pipeline.backtest.results import BEFORE_THE_GATE, NOT_RUN, TESTS, status_of
from finjepa_pipeline.features.assets import made_panel, panel_of_run
from finjepa_pipeline.publishing.daily import make_decision
from finjepa_pipeline.publishing.gate import Champion, current_champion, judge
from finjepa_pipeline.publishing.live_record import record_night, record_of
from finjepa_pipeline.report.backtest import page_of
from finjepa_pipeline.report.decision import holdings
from finjepa_pipeline.report.live_record import PAGE, RecordSummary, write_record_page
from finjepa_pipeline.retention import KEEP, clean, living
from finjepa_pipeline.runs import asset, made_in_run
from finjepa_pipeline.settings import SettingsResource
from finjepa_pipeline.training.assets import checkpoint_of_run
from finjepa_pipeline.warehouse import Warehouse


class ChallengerConfig(dg.Config):
    """Who is judged."""

    checkpoint: str | None = Field(
        default=None, description="Id of a checkpoint of this home; the newest when empty, e.g. f0cd364f85bd2b6e"
    )


class GateConfig(dg.Config):
    """How the gate is asked."""

    dry_run: bool = Field(default=False, description="Say what the verdict would be, and store nothing.")


class PublishConfig(dg.Config):
    """Where the champion goes."""

    hub_repo_id: str | None = Field(
        default=None, description="Repository on the Hub; FINJEPA_HUB_REPO_ID when empty, e.g. owner/name"
    )
    dry_run: bool = Field(default=False, description="Say what would be released, and release nothing.")


class PricesConfig(dg.Config):
    """Prices that the home must show."""

    feed: str = Field(description="Key of the source, as the asset prices shows it, e.g. af2bdbe1aa9b")
    data_version: str = Field(description="Version of its prices, as the asset prices shows it, e.g. 8872745d99fa")


class DecisionConfig(dg.Config):
    """Who decides, and when."""

    as_of: str | None = Field(default=None, description="Date; the newest close when empty, e.g. 2022-06-30")
    checkpoint: str | None = Field(
        default=None, description="Checkpoint folder or Hub repository; the champion when empty, e.g. owner/name"
    )
    planner: str | None = Field(
        default=None, description="The champion's own when empty, or else FINJEPA_PLANNER; td is experimental, e.g. qp"
    )
    utility: str | None = Field(
        default=None, description="What the planner maximises; its own when empty, e.g. log_growth - 5*variance"
    )
    prices: PricesConfig | None = Field(
        default=None,
        description="What is decided on; what the home shows when empty, e.g. {feed: af2bdbe1aa9b, data_version: 8872745d99fa}",
    )
    n_assets: int | None = Field(
        default=None,
        ge=2,
        description="Most assets that are traded; as in the backtest of the champion when empty, or else 20, e.g. 20",
    )


class RecordConfig(dg.Config):
    """Where the live record goes, and when."""

    publish: Literal["night", "release", "never"] = Field(
        default="night", description="With every night, with every release of a checkpoint, or never, e.g. release"
    )
    repo_id: str | None = Field(
        default=None, description="Repository on the Hub; FINJEPA_HUB_REPO_ID when empty, e.g. owner/name"
    )
    repo_type: Literal["model", "dataset"] = Field(
        default="model", description="Kind of that repository, model or dataset, e.g. model"
    )


class RetentionConfig(dg.Config):
    """What stays on the disk."""

    keep: int = Field(
        default=KEEP, description="How many checkpoints, reports and states stay beside those that are needed, e.g. 10"
    )


@asset(
    "publishing",
    "pytorch",
    "duckdb",
    deps=["leaderboard"],
    pool="duckdb",
    table="audit_results",
    # They bind the gate and not the run: where one failed the champion stays, and the nightly run succeeds.
    checks={test: TESTS[test] for test in BEFORE_THE_GATE},
)
def challenger_audit(
    context: dg.AssetExecutionContext, config: ChallengerConfig, settings: SettingsResource, warehouse: Warehouse
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """The leak, null, delay and permutation tests of the newest checkpoint, or of one that is named, with its best planner. The
    gate refuses a challenger that failed one or was not tested. What was run before is not run again; `finjepa audit` runs
    longer ones."""
    home = settings.get()
    named = config.checkpoint and checkpoint_folder(home, config.checkpoint)
    checkpoint, panel = named or checkpoint_of_run(context, home), panel_of_run(context, home)
    audit = audit_challenger(home, warehouse, checkpoint, panel, context.run.run_id, context.log.info)
    rows = [(test, status_of(passed, found), found) for test, (passed, found) in audit.findings.items()]
    yield dg.MaterializeResult(
        metadata={
            "checkpoint": checkpoint.name,
            "panel": panel.name,
            "strategy": audit.strategy or "",
            "tests": _table(("test", "result", "found"), rows),
            "run": ", ".join(audit.run) or "nothing: all results were known",
            "reused": not audit.run,
        },
        data_version=dg.DataVersion(f"{checkpoint.name}-{audit.strategy}"),
    )
    missing = (None, f"{NOT_RUN}: no planner of it was backtested on the validation block")
    report = page_of(home.reports, checkpoint.name, str(Panel.open(panel).manifest["data_version"]))
    for test in BEFORE_THE_GATE:
        yield check_result("challenger_audit", test, *audit.findings.get(test, missing), home.address_of(report))


@asset(
    "publishing",
    "duckdb",
    deps=["leaderboard", "challenger_audit"],
    pool="duckdb",
    table="champions",
)
def champion(
    context: dg.AssetExecutionContext, config: GateConfig, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """Whether the newest checkpoint replaces the trusted one: judged on the validation block, with every reason. Where nothing
    passes the champion stays, and the run is green. Every verdict is a row of `champions`, every reason one of
    `champion_checks`."""
    home = settings.get()
    checkpoint, panel = checkpoint_of_run(context, home), Panel.open(panel_of_run(context, home))
    verdict = judge(home, warehouse, checkpoint, panel, write=not config.dry_run)
    checks = [(one.name, one.verdict, "yes" if one.blocking else "no", one.detail) for one in verdict.findings]
    known = {"t_against_baseline": verdict.t_baseline, "t_against_champion": verdict.t_champion}
    return dg.MaterializeResult(
        metadata={
            "challenger": verdict.challenger,
            "champion": verdict.champion or "",
            "verdict": verdict.verdict,
            "reasons": "; ".join(verdict.reasons),
            "checks": _table(("check", "result", "blocking", "found"), checks),
            "strategy": verdict.strategy or "",
            **{name: value for name, value in known.items() if value is not None},
            "stored": not config.dry_run,
            "reused": not verdict.new,
        },
        data_version=dg.DataVersion(verdict.champion or "none"),
    )


@asset("publishing", "huggingface", deps=["champion"], pool="release", table="releases")
def hub_release(
    context: dg.AssetExecutionContext, config: PublishConfig, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """The champion with its model card, under FINJEPA_HOME/releases/ and, where a repository is named, as one commit and
    one tag on the Hub. Nothing is released twice."""
    from finjepa_pipeline.publishing.release import (  # here: it sets the Hub's client of the process
        plan_release,
        release,
    )

    home = settings.get()
    repo_id = config.hub_repo_id or home.hub_repo_id
    with warehouse.connect() as connection:
        winner = current_champion(connection)
    judged = made_in_run(context, "champion") if config.dry_run else {}
    if judged.get("verdict") == "promoted":
        winner = Champion(judged["challenger"], judged["strategy"])
    if winner is None:
        return _nothing("no champion, so nothing is released")
    if config.dry_run:
        return _nothing(f"dry run: {plan_release(home, winner, repo_id)}")
    made = release(home, warehouse, winner, repo_id)
    package = made.package
    assert package is not None  # of a champion there is one
    return dg.MaterializeResult(
        metadata={
            "outcome": made.note,
            "tag": package.tag,
            "content_hash": package.content_hash,
            "path": dg.MetadataValue.path(str(package.folder)),
            "model_card": dg.MetadataValue.md((package.folder / "README.md").read_text(encoding="utf-8")),
            **_on_the_hub(made.url, made.commit),
            "reused": not made.new,
        },
        data_version=dg.DataVersion(package.content_hash),
    )


@asset("publishing", "duckdb", deps=["champion", "feature_panel"], pool="duckdb", table="decisions")
def daily_decision(
    context: dg.AssetExecutionContext, config: DecisionConfig, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """Weights, signals and hedge for the next session, from the portfolio that the decision before left; with what the
    model expects of them, why, and what changed. A decision is due when `model.stride` sessions have passed since the last one;
    in between the book holds. Shares are of wealth, rates are a year."""
    home, asked = settings.get(), (config.as_of, config.checkpoint, config.planner, config.utility)
    prices = (config.prices.feed, config.prices.data_version) if config.prices else None
    made = make_decision(home, warehouse, *asked, made_panel(context, home), prices, config.n_assets)
    if made is None:
        return _nothing("no champion, so nothing is decided")
    decision = made.decision
    numbers = ("hedge", "cash", "expected_return", "expected_volatility", "wealth", "planner", "checkpoint", "book")
    return dg.MaterializeResult(
        metadata={
            "date": decision["date"],
            "hold": decision["hold"],
            **({"next_decision": decision["next_decision"]} if decision["next_decision"] else {}),
            "holdings": dg.MetadataValue.md(holdings(decision)),
            "changes": dg.MetadataValue.md("\n".join(f"- {line}" for line in decision["changes"])),
            **{name: decision[name] for name in numbers},
            "page": dg.MetadataValue.url(home.address_of(made.path.with_suffix(".html"))),
            "path": dg.MetadataValue.path(str(made.path)),
            "decision": dg.MetadataValue.json(decision),
            "reused": not made.new,
        },
        data_version=dg.DataVersion(f"{decision['date']}-{decision['checkpoint']}-{decision['data_version']}"),
    )


_CHECKED_NIGHTS = 63  # whose tables are hashed again each night; `finjepa verify` takes all
_RECORD_CHECKS = {
    "chain": "Every night has the hash of the one before, and the newest 63 are as they were written.",
    "calibrated": "Control charts of the live forecasts raise no alarm; a new alarm is an error, an old one a warning.",
    "complete": "Each of the last 21 sessions has a night.",
}


@asset("publishing", "pytorch", "polars", deps=["daily_decision"], pool="duckdb", checks=_RECORD_CHECKS)
def live_record(
    context: dg.AssetExecutionContext, settings: SettingsResource, warehouse: Warehouse
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """What the champion and textbook baselines forecast at the newest close, kept before the outcome, and the scores of the
    nights before. A session has one night, which is never changed; each has the hash of the one before."""
    home = settings.get()
    made = record_night(home, warehouse, made_panel(context, home))
    if made is None:
        nothing = "no champion, or no two eligible assets: nothing is forecast"
        yield _nothing(nothing)
        for name in _RECORD_CHECKS:
            yield check_result("live_record", name, None, nothing)
        return
    summary, new = made
    record, page = summary.record, summary.record.folder / PAGE
    write_record_page(page, summary)
    address = home.address_of(page)
    yield dg.MaterializeResult(
        metadata={
            "words": summary.headline,
            "control_charts": summary.drift,
            "coverage": dg.MetadataValue.md(summary.coverage_image),
            **summary.numbers,
            "nights": record.nights.height,
            "missed_sessions": len(summary.gaps),
            "in_hindsight": len(summary.hindsight),
            "last_hash": record.last_hash,
            "page": dg.MetadataValue.url(address),
            "path": dg.MetadataValue.path(str(record.folder)),
            "reused": not new,
        },
        data_version=dg.DataVersion(record.last_hash),
    )
    broken = record.broken(newest=_CHECKED_NIGHTS)
    agree = f"{record.nights.height} nights agree"
    yield check_result("live_record", "chain", not broken, "; ".join(broken) or agree, address)
    drifted, why = summary.drifted
    severity = dg.AssetCheckSeverity.ERROR if new and summary.alarm_is_new else dg.AssetCheckSeverity.WARN
    shown = {"page": dg.MetadataValue.url(address)}
    yield dg.AssetCheckResult(
        passed=drifted is False, check_name="calibrated", severity=severity, description=why, metadata=shown
    )
    missed = summary.recent_gaps
    text = f"no night of {', '.join(map(str, missed))}" if missed else "no session was missed"
    severity = dg.AssetCheckSeverity.WARN
    yield dg.AssetCheckResult(passed=not missed, check_name="complete", severity=severity, description=text)


@asset("publishing", "huggingface", deps=["live_record", "hub_release"], pool="release", table="live_record_releases")
def live_record_release(
    context: dg.AssetExecutionContext, config: RecordConfig, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """The live record as one commit on the Hub: its tables, its page `index.html`, and a section of the card. What could not be
    published is published by a later run, with the times at which it was written."""
    from finjepa_pipeline.publishing.release import publish_record  # here: it sets the Hub's client of the process

    home = settings.get()
    repo_id = config.repo_id or (home.hub_repo_id if config.repo_type == "model" else None)
    record = record_of(home, str(Panel.open(panel_of_run(context, home)).manifest["feed"]))
    released = made_in_run(context, "hub_release")
    why_not = None
    if config.publish == "never":
        why_not = "it is not to be published"
    elif repo_id is None:
        why_not = f"no Hub repository of kind {config.repo_type} is configured"
    elif not record.sessions:
        why_not = "there is no night yet"
    elif config.publish == "release" and (released.get("reused", True) or "url" not in released):
        why_not = "no checkpoint was released in this run"
    if why_not or repo_id is None:
        return _nothing(f"nothing is published: {why_not}")
    made = publish_record(warehouse, RecordSummary.of(record), repo_id, config.repo_type)
    return dg.MaterializeResult(
        metadata={
            "outcome": made.note,
            **_on_the_hub(made.url, made.commit),
            "last_hash": record.last_hash,
            "reused": not made.new,
        },
        data_version=dg.DataVersion(record.last_hash),
    )


@asset("publishing", "duckdb", deps=["hub_release", "daily_decision", "live_record"], pool="duckdb")
def retention(
    context: dg.AssetExecutionContext, config: RetentionConfig, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """Removes what no nightly run needs any more, so that the disk does not fill; docs/how-to/disk.md says what is kept and why.
    Removes nothing while another run or command uses the home: the next nightly run does."""
    home = settings.get()
    alive = living(home, context.instance, context.run.run_id)
    if alive is not None:
        return dg.MaterializeResult(metadata={"removed": 0, "note": f"{alive} uses this home; the next run removes"})
    with warehouse.connect(read_only=True) as con:
        plan = clean(home, con, context.instance, config.keep, own_run=context.run.run_id)
    return dg.MaterializeResult(
        metadata={
            "removed": len(plan.removals),
            "bytes": sum(one.bytes for one in plan.removals),
            "kinds": dg.MetadataValue.json(dict(Counter(one.kind for one in plan.removals))),
            "kept": dg.MetadataValue.json(plan.kept),
        }
    )


def _nothing(outcome: str) -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata={"outcome": outcome, "reused": True})


def _on_the_hub(url: str | None, commit: str | None) -> dict[str, Any]:
    return {"url": dg.MetadataValue.url(url), "commit": commit or ""} if url else {}


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dg.TableMetadataValue:
    records = [dg.TableRecord(dict(zip(columns, row, strict=True))) for row in rows]
    return dg.TableMetadataValue(records, dg.TableSchema([dg.TableColumn(name) for name in columns]))


ASSETS = [challenger_audit, champion, hub_release, daily_decision, live_record, live_record_release, retention]
