"""The commands of `finjepa`: each asks for a run of a job with the config that its options give, and prints what the run made."""

import importlib.util
import os
import re
import sys
from pathlib import Path
from shlex import quote
from typing import Any

import click

from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json
from finjepa_model.live_record.verify import record_folder
from finjepa_model.live_record.verify import verify as verify_record
from finjepa_pipeline import console, retention
from finjepa_pipeline.backtest.assets import AuditConfig, BacktestConfig, WalkForwardConfig
from finjepa_pipeline.backtest.compare import compare as compared
from finjepa_pipeline.cli_options import (
    OpConfig,
    Ops,
    add_training,
    check_overrides,
    options_of,
    refuse_given,
    training_options,
)
from finjepa_pipeline.console import err, out
from finjepa_pipeline.doctor import examine
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.prices.ingest import ContractError
from finjepa_pipeline.prices.sources import PriceSourceConfig
from finjepa_pipeline.publishing import assets as publishing
from finjepa_pipeline.publishing.decision import forecast as forecast_at
from finjepa_pipeline.publishing.live_record import record_of
from finjepa_pipeline.publishing.reproduce import reproduce as rebuild
from finjepa_pipeline.report.backtest import write_comparison
from finjepa_pipeline.runner import JobReport, open_instance, run_job
from finjepa_pipeline.runs import locked
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.assets import SweepConfig, TrainConfig
from finjepa_pipeline.warehouse import Warehouse

_PRICES = OpConfig("ingest_prices", PriceSourceConfig)
_NEWEST_PRICES = OpConfig("ingest_prices", PriceSourceConfig, but=("as_of",))
_MODEL = OpConfig("world_model", TrainConfig)
_BACKTEST = OpConfig("planner_backtests", BacktestConfig)
_WALK = OpConfig("walk_forward", WalkForwardConfig)
_RELEASE = (OpConfig("champion", publishing.GateConfig), OpConfig("hub_release", publishing.PublishConfig))

_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output and nothing else.")
_export = click.option(
    "--export",
    metavar="FILE",
    callback=lambda *given: console.export_path(given[2]),
    help="Write results to a .csv or .parquet file.",
)


@click.command()
@options_of(_PRICES)
@click.pass_obj
def ingest(debug: bool, ops: Ops) -> None:
    """Prices to validated tables."""
    report = _run("ingest", ops, debug)
    console.print_prices(report.assets)
    console.print_quality(report.assets)


@click.command()
@options_of(
    _PRICES,
    _MODEL,
    OpConfig("planner_backtests", BacktestConfig, only=("planner",)),
    OpConfig("hub_release", publishing.PublishConfig, only=("hub_repo_id",)),
)
@training_options("n_assets", "batch_size", "epochs", "seed")
@click.option("--push-to-hub", is_flag=True, help="Release the checkpoint if it passes the champion gate.")
@click.pass_obj
def train(debug: bool, ops: Ops, push_to_hub: bool, **shortcuts: Any) -> None:
    """Everything up to a checkpoint, and on to the Hub if asked."""
    if not push_to_hub:
        refuse_given("without --push-to-hub", "hub_repo_id", "planner")
    elif not (ops.get("hub_release") or Settings.from_env().hub_repo_id):
        raise FinJEPAError("--push-to-hub needs --hub-repo-id owner/name, or FINJEPA_HUB_REPO_ID")
    ops["world_model"] = add_training(ops.get("world_model", {}), **shortcuts)
    ops = _with_market_seed(ops, shortcuts["seed"])
    report = _run("train_and_release" if push_to_hub else "train", ops, debug)
    console.print_prices(report.assets)
    console.print_model(report.assets)
    console.print_scorecard(report.assets)
    if push_to_hub:
        console.print_release(report.assets)


@click.command()
@options_of(OpConfig("model_sweep", SweepConfig))
@training_options("n_assets", "batch_size", "epochs")
@click.pass_obj
def sweep(debug: bool, ops: Ops, **shortcuts: Any) -> None:
    """Train an ablation grid, or an ensemble (--no-stop-early), on the panel that is there: on a Ray cluster side by side."""
    if ops.get("model_sweep", {}).get("stop_early") and Settings.from_env().ray_address is None:
        refuse_given("without a cluster (FINJEPA_COMPUTE)", "stop_early")
    config = add_training(ops.get("model_sweep", {}), **shortcuts)
    console.print_sweep(_run("sweep", {"model_sweep": config}, debug).assets["model_sweep"])


@click.command()
@options_of(
    OpConfig("daily_decision", publishing.DecisionConfig, only=("as_of", "checkpoint")),
    OpConfig("planner_backtests", BacktestConfig, only=("n_assets",)),
)
@_json
def forecast(ops: Ops, as_json: bool) -> None:
    """Volatilities, correlations and quantiles of returns after a close, and how good such forecasts were."""
    asked, n_assets = ops.get("daily_decision", {}), BacktestConfig(**ops.get("planner_backtests", {})).n_assets
    found = forecast_at(Settings.from_env(), asked.get("checkpoint"), asked.get("as_of"), n_assets)
    click.echo(to_json(found)) if as_json else console.print_forecast(found)


@click.command()
@options_of(_BACKTEST, _WALK)
@_export
@click.pass_obj
def backtest(debug: bool, ops: Ops, export: Path | None) -> None:
    """Leaderboard and tear sheet. With --folds: a walk-forward, one model a fold, in place of the one split."""
    walk = ops.get("walk_forward", {})
    if "folds" not in walk:
        refuse_given("without --folds", *_WALK.fields().keys() - _BACKTEST.fields().keys())
        ops = {"planner_backtests": ops.get("planner_backtests", {})}
        assets = _run("backtest", ops, debug).assets
        console.print_leaderboard(assets)
        _export_backtest(assets["leaderboard"], export)
        return
    refuse_given("with --folds, which trains its own models", "checkpoint")
    check_overrides({"preset": WalkForwardConfig().preset} | walk)
    made = _run("walk_forward_job", {"walk_forward": walk}, debug).assets["walk_forward"]
    console.print_leaderboard({"leaderboard": made})
    _export_backtest(made, export)


def _export_backtest(made: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        settings = Settings.from_env()
        with Warehouse.from_settings(settings).connect(read_only=True) as con:
            files = console.export_backtest(con, made["checkpoint"], made["data_version"], path)
        out.print(f"Wrote {' and '.join(map(str, files))}")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="A B ...")
@click.option("--block", default="test", help="test or validation.  [default: test]")
@_json
def compare(names: tuple[str, ...], block: str, as_json: bool) -> None:
    """Checkpoints or strategies side by side, with paired intervals, by their stored backtests. A name is that of a strategy on
    the newest checkpoint, of a checkpoint, or CHECKPOINT/STRATEGY; its start is enough."""
    if len(names) < 2:
        raise click.UsageError("name two or more, as `finjepa compare qp equal_weight`")
    settings = Settings.from_env()
    with Warehouse.from_settings(settings).connect(read_only=True) as con:
        found, returns = compared(con, settings, names, block)
    name = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(side["label"] for side in found["sides"]))
    page = settings.reports / "comparisons" / f"{name}.html"
    write_comparison(page, found, returns)
    if as_json:
        click.echo(to_json(found | {"page": str(page)}))
    else:
        console.print_comparison(found, page)


@click.command()
@options_of(OpConfig("leakage_audit", AuditConfig))
@click.pass_obj
def audit(debug: bool, ops: Ops) -> None:
    """The leakage, null-market, known-truth, delay and permutation tests."""
    if "strategy" in ops.get("leakage_audit", {}):
        refuse_given("with --strategy, which is audited in its place", "planner")
    made = _run("audit", ops, debug).assets["leakage_audit"]
    console.print_audit(made["findings"])
    if made["failed"] != "none":
        raise FinJEPAError(f"the audit failed: {made['failed']}; see the findings above")


@click.command()
@options_of(OpConfig("challenger_audit", publishing.ChallengerConfig), *_RELEASE)
@click.pass_obj
def publish(debug: bool, ops: Ops) -> None:
    """The champion gate and the release."""
    console.print_release(_run("publish", ops, debug).assets)


@click.command()
@options_of(OpConfig("daily_decision", publishing.DecisionConfig, but=("prices",)), _NEWEST_PRICES)
@_json
@_export
@click.pass_obj
def decide(debug: bool, ops: Ops, as_json: bool, export: Path | None) -> None:
    """The decision for a date, and the expected outcome. A checkpoint of the Hub needs no home: prices are ingested first where
    there are none, or a source is named."""
    source, asked = ops.get("ingest_prices", {}), ops.get("daily_decision", {})
    if source or ("checkpoint" in asked and not Settings.from_env().warehouse.is_file()):
        ingested = _run("ingest", {"ingest_prices": source}, debug).assets["prices"]
        asked["prices"] = {name: ingested[name] for name in ("feed", "data_version")}
    decision = console.read_decision(_run("decide", {"daily_decision": asked}, debug).assets)
    if export is not None:
        console.export_decision(decision, export)
    click.echo(to_json(decision)) if as_json else console.print_decision(decision)


@click.command()
@options_of(_NEWEST_PRICES, OpConfig("planner_backtests", BacktestConfig, only=("n_assets",)))
@click.option("--seed", type=int, help="Seed of the training, and of the source `synthetic`.")
@click.pass_obj
def demo(debug: bool, ops: Ops, seed: int | None) -> None:
    """The whole pipeline on the embedded sample, small model: prices to a release and a decision."""
    settings = Settings.from_env()
    ops["ingest_prices"] = {"data_source": "sample"} | ops.get("ingest_prices", {})
    ops["world_model"] = add_training({"preset": "tiny"}, "jepa", seed=seed)
    report = _run("nightly", _with_market_seed(ops, seed), debug)
    console.print_prices(report.assets)
    console.print_model(report.assets)
    console.print_scorecard(report.assets)
    console.print_leaderboard(report.assets)
    console.print_release(report.assets)
    console.print_decision(console.read_decision(report.assets))
    out.print(f"\nDone in {report.seconds:.0f} s. See it all in the browser:")
    out.print(f"  {_ui_command(settings)}", style="bold")


@click.command()
@click.argument("checkpoint")
@_json
@click.pass_obj
def reproduce(debug: bool, checkpoint: str, as_json: bool) -> None:
    """Build CHECKPOINT (an id of this home, a folder, a Hub repository) again from its lineage, and compare."""
    settings = Settings.from_env().ensure()
    err.print(f"finjepa reproduce: the job train, in {settings.home / 'reproductions'}", style="bold")
    report = rebuild(settings, checkpoint, lambda home, ops: run_job(home, "train", ops, err, debug), err.print)
    if as_json:
        click.echo(to_json(vars(report) | {"rebuilt": str(report.rebuilt)}))
    else:
        console.print_reproduction(report)
    if not report.identical:
        raise FinJEPAError(f"{report.checkpoint} did not come out the same: {report.differences[0]}")


@click.command()
@click.argument("repo", required=False)
@_json
def verify(repo: str | None, as_json: bool) -> None:
    """Recompute the hashes and scores of the live record in REPO (owner/name on the Hub, or a folder), or in this home."""
    settings = Settings.from_env()
    if repo is None:
        folder = record_of(settings, str(Panel.open(current_panel(settings)).manifest["feed"])).folder
    else:
        folder = record_folder(repo)
    found = verify_record(folder, repo or str(settings.home))
    if as_json:
        click.echo(to_json(vars(found)))
    if found.broken:
        raise FinJEPAError(found.text)
    if not as_json:
        click.echo(found.text)


@click.command()
@options_of(OpConfig("retention", publishing.RetentionConfig))
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
def clean(ops: Ops, dry_run: bool) -> None:
    """Free disk: remove what nobody needs any more. Releases, champions, decisions and the warehouse are never removed."""
    settings, own = Settings.from_env(), f"clean-{os.getpid()}"
    retention.release_reserve(settings)
    settings.ensure()
    with (
        open_instance(settings) as instance,
        locked(settings.dagster / "commands", own),
        Warehouse.from_settings(settings).connect(read_only=True) as con,
    ):
        keep = publishing.RetentionConfig(**ops.get("retention", {})).keep
        plan = retention.clean(settings, con, instance, keep, dry_run, own)
    retention.hold_reserve(settings)
    console.print_cleaned(plan, dry_run)


@click.command()
def doctor() -> None:
    """What is installed, which device, which data, which token; what is missing and how to get it."""
    console.print_findings(examine(Settings.from_env()))


def _run(job: str, ops: Ops, debug: bool) -> JobReport:
    settings = Settings.from_env().ensure()
    err.print(f"finjepa {job} in {settings.home}", style="bold")
    try:
        return run_job(settings, job, ops, err, debug)
    except ContractError as refusal:
        console.print_refusal(refusal, settings)
        raise


def _with_market_seed(ops: Ops, seed: int | None) -> Ops:
    """One seed for a synthetic market and for what is trained on it."""
    source = ops.get("ingest_prices", {})
    if seed is None or source.get("data_source") != "synthetic":
        return ops
    return ops | {"ingest_prices": {"synthetic_seed": seed} | source}


def _ui_command(settings: Settings) -> str:
    where = Path(importlib.util.find_spec("finjepa_pipeline").origin).parent.parent / "workspace.yaml"  # type: ignore[union-attr]
    workspace = f"-w {quote(str(where))}" if where.is_file() else "-m finjepa_pipeline.definitions"
    homes = f"FINJEPA_HOME={quote(str(settings.home))} DAGSTER_HOME={quote(str(settings.dagster))}"
    return f"{homes} {quote(sys.executable)} -m finjepa_pipeline.ui {workspace}"
