"""Dagster's side of the backtest stage: backtests, the leaderboard, the walk-forward and the audit."""

from pathlib import Path

import dagster as dg
import duckdb
from pydantic import Field

from finjepa_model.config import preset
from finjepa_model.data.panel import Panel
from finjepa_pipeline import compute
from finjepa_pipeline.backtest import walk_forward as walk
from finjepa_pipeline.backtest.audit import run_audit
from finjepa_pipeline.backtest.blocks import (
    BacktestBlock,
    StrategiesConfig,
    checkpoint_folder,
    parse_planners,
    pending_blocks,
    run_backtests,
    run_blocks,
)
from finjepa_pipeline.backtest.leaderboard import build_leaderboard, leaderboard_history, report_of
from finjepa_pipeline.backtest.results import NOT_ENOUGH_DATA, NOT_RUN, TESTS, never_backtested, status_of
from finjepa_pipeline.backtest.strategies import refuse_untrusted
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.features.assets import panel_of_run
from finjepa_pipeline.report.backtest import BacktestReport, leaderboard_table, page_of, write_history, write_report
from finjepa_pipeline.report.markdown import cell, table
from finjepa_pipeline.report.risk import read_scorecard
from finjepa_pipeline.runs import asset, made_in_run, made_last
from finjepa_pipeline.settings import DEFAULT_UI_URL, Settings, SettingsResource
from finjepa_pipeline.training.assets import checkpoint_of_run
from finjepa_pipeline.training.checkpoints import current_checkpoint, for_panel, train_side_by_side
from finjepa_pipeline.training.step import ModelChoice, train_in_step
from finjepa_pipeline.warehouse import Warehouse

_STATISTICS = ("trials", "effective_trials", "pbo", "spa_p")


class BacktestConfig(StrategiesConfig):
    """Who is tested on which checkpoint."""

    checkpoint: str | None = Field(
        default=None, description="Id of a checkpoint of this home; the newest when empty, e.g. f0cd364f85bd2b6e"
    )


class WalkForwardConfig(StrategiesConfig, ModelChoice):
    """How history is cut, what is trained on each part, and who is tested."""

    folds: int = Field(default=5, ge=1, description="Number of folds, e.g. 5")
    scheme: walk.Scheme = Field(default="expanding", description="expanding, or rolling (eight years), e.g. rolling")
    held_back: int = Field(default=504, ge=0, description="Sessions at the end that no fold sees, e.g. 504")
    open_held_back: bool = Field(
        default=False, description="Test on the held-back block as well; every opening is recorded for good."
    )
    unseen_symbols: float = Field(
        default=0.2, ge=0, lt=1, description="Share of the symbols that training never sees, e.g. 0.2"
    )
    preset: str = Field(default="tiny", description=ModelChoice.model_fields["preset"].description)
    controls: str | None = Field(default="none", description=StrategiesConfig.model_fields["controls"].description)


class AuditConfig(dg.Config):
    """Who is audited, and how long the audit may take."""

    planner: str = Field(default="mppi", description="Planner on the checkpoint's world model, e.g. mppi")
    strategy: str | None = Field(
        default=None,
        description="A strategy of your own instead, as module:callable or file.py:callable, e.g. my_rules.py:decide",
    )
    checkpoint: str | None = Field(
        default=None, description="Id of a checkpoint of this home; the newest when empty, e.g. f0cd364f85bd2b6e"
    )
    dates: int = Field(
        default=2, ge=1, description="Random dates at which the future is changed; three rebuilds each, e.g. 2"
    )
    seeds: int = Field(
        default=4, ge=0, description="Null markets, and a quarter as many with known drift; 0 for none, e.g. 4"
    )
    symbols: int = Field(default=20, ge=3, description="Symbols of the home's prices that are rebuilt, e.g. 20")
    sessions: int = Field(default=1500, ge=500, description="Newest sessions of them, e.g. 1500")


@asset("backtest", "pytorch", "duckdb", deps=["world_model", "feature_panel"], pool="duckdb")
def planner_backtests(
    context: dg.AssetExecutionContext, config: BacktestConfig, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """Daily returns of each planner and baseline on the validation and the test block: decided at a close, filled at the
    next, after costs. A result that is stored already is not computed again."""
    refuse_untrusted(config.strategies)
    home = settings.get()
    folder = checkpoint_folder(home, config.checkpoint or checkpoint_of_run(context, home).name)
    panel = panel_of_run(context, home)
    done = run_backtests(warehouse, home, folder, panel, config, context.log.info)
    manifest = Panel.open(panel).manifest
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": done["rows"],
            "checkpoint": folder.name,
            "data_version": manifest["data_version"],
            "feed": manifest["feed"],
            "panel": panel.name,
            "strategies": ", ".join(config.tested("test")),
            "planners": ", ".join(parse_planners(config.planner, config.utility)),
            "blocks": dg.MetadataValue.json(done["blocks"]),
            "computed": done["computed"],
            "reused": done["computed"] == 0,
        },
        data_version=dg.DataVersion(f"{folder.name}-{manifest['data_version']}"),
    )


@asset("backtest", "duckdb", "plotly", deps=["planner_backtests", "risk_scorecard"], pool="duckdb", table="leaderboard")
def leaderboard(
    context: dg.AssetExecutionContext, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """Every strategy with its metrics, and the bootstrap interval of its Sharpe ratio minus that of 1/N; and the report."""
    home = settings.get()
    tested = made_in_run(context, "planner_backtests") or made_last(context, "planner_backtests")
    checkpoint = str(tested["checkpoint"]) if tested else current_checkpoint(home).name
    data_version = str(tested["data_version"]) if tested else ""
    with warehouse.connect() as con:
        labels = {"fold": "single", "run_id": context.run.run_id, "feed": tested.get("feed")}
        untried = never_backtested(con, home.checkpoints)
        build_leaderboard(con, checkpoint, data_version, untried=untried, labels=labels)
        report, page = _write_pages(con, home, checkpoint, data_version)
    statistics = next(iter(report.of("inference").to_dicts()), {})
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(report.rows),
            "checkpoint": checkpoint,
            "data_version": data_version,
            "verdict": report.headline,
            "acting": report.why_acting,
            "traded": report.traded,
            "report": dg.MetadataValue.url(home.address_of(page)),
            "path": dg.MetadataValue.path(str(page)),
            "every_backtest": dg.MetadataValue.url(home.address_of(home.reports / "leaderboard.html")),
            **{name: statistics[name] for name in _STATISTICS if statistics.get(name) is not None},
            "test_block": dg.MetadataValue.md(leaderboard_table(report.test, report.benchmark)),
        },
        data_version=dg.DataVersion(f"{checkpoint}-{data_version}"),
    )


def _write_pages(
    con: duckdb.DuckDBPyConnection, home: Settings, checkpoint: str, data_version: str
) -> tuple[BacktestReport, Path]:
    """The report of a checkpoint or of a plan, with its page, and the page of every leaderboard."""
    report = report_of(con, home.checkpoints / checkpoint, data_version, home.planner)
    write_history(
        home.reports / "leaderboard.html", leaderboard_history(con), home.checkpoints, home.ui_url or DEFAULT_UI_URL
    )
    page = page_of(home.reports, checkpoint, data_version)
    write_report(page, checkpoint, report, read_scorecard(home.reports, checkpoint))
    return report, page


@asset("walk_forward", "pytorch", "duckdb", "plotly", deps=["feature_panel"], pool="gpu")
def walk_forward(
    context: dg.AssetExecutionContext, config: WalkForwardConfig, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """One model a fold, which has seen nothing after its training block; every strategy on its validation and test block
    and on the symbols that training never saw; a leaderboard of each fold, and one of all test blocks chained, with its
    report. A model or a result that is there already is not computed again."""
    refuse_untrusted(config.strategies)
    config.tested("test")  # wrong names end here, and not after the trainings
    home = settings.get()
    panel = Panel.open(current_panel(home))
    overrides = dict(config.overrides) | {"training.unseen_symbols": str(config.unseen_symbols)}
    wanted = for_panel(preset(config.preset).override(overrides), panel)
    plan = walk.make_plan(panel, wanted, count=config.folds, scheme=config.scheme, held_back=config.held_back)
    made = _train_folds(context, home, warehouse, panel, plan)
    pending, opened = [], None
    for fold, checkpoint in made:
        blocks = walk.fold_blocks(panel, fold)
        if config.open_held_back and config.held_back and fold is plan.folds[-1]:
            with warehouse.connect() as con:
                opened = walk.record_opening(con, panel, plan, checkpoint, context.run.run_id)
            blocks.append(BacktestBlock("held_back", *plan.held_back))
        pending += pending_blocks(warehouse, home.checkpoints / checkpoint, panel, config, blocks)
    run_blocks(warehouse, home, pending, context.log.info)
    version = str(panel.manifest["data_version"])
    labels = {"run_id": context.run.run_id, "feed": str(panel.manifest["feed"])}
    with warehouse.connect() as con:
        walk.pool(con, plan.name)
        untried = never_backtested(con, home.checkpoints)
        for name, checkpoint in [*((fold.name, checkpoint) for fold, checkpoint in made), ("all folds", plan.name)]:
            build_leaderboard(con, checkpoint, version, untried=untried, labels=labels | {"fold": name})
        report, page = _write_pages(con, home, plan.name, version)

    def days(block: tuple[int, int]) -> str:
        return f"{panel.dates[block[0]]} to {panel.dates[block[1] - 1]}" if block[1] > block[0] else "nothing"

    rows = [(f.name, checkpoint, days(f.train), days(f.validation), days(f.test)) for f, checkpoint in made]
    columns = ("fold", "checkpoint", "train", "validation", "test")
    return dg.MaterializeResult(
        metadata={
            "checkpoint": plan.name,  # what the pooled results are stored under
            "data_version": version,
            "verdict": report.headline,
            "report": dg.MetadataValue.url(home.address_of(page)),
            "path": dg.MetadataValue.path(str(page)),
            "folds": dg.MetadataValue.md(table(columns, rows, numbers=False)),
            "held_back": days(plan.held_back),
            **({"held_back_opening": opened} if opened is not None else {}),
        },
        data_version=dg.DataVersion(f"{plan.name}-{version}"),
    )


def _train_folds(
    context: dg.AssetExecutionContext, home: Settings, warehouse: Warehouse, panel: Panel, plan: walk.WalkForwardPlan
) -> list[tuple[walk.Fold, str]]:
    """Each fold with its checkpoint; they are trained side by side on a cluster."""
    keys = {f"{plan.name}:{fold.name}": fold for fold in plan.folds}
    where = compute.ranks(home, None if home.ray_address is None else 1)
    if home.ray_address is not None and len(keys) > 1:
        wanted = {key: fold.config for key, fold in keys.items()}
        train_side_by_side(home, panel, wanted, where, context.log.info)
    made = []
    for key, fold in keys.items():
        folder, _ = train_in_step(context, home, warehouse, panel, fold.config, where, fold=key)
        with warehouse.connect() as con:
            walk.store_fold(con, panel, plan, fold, folder.name)
        made.append((fold, folder.name))
    return made


def check_result(asset: str, test: str, passed: bool | None, text: str, page: str | None = None) -> dg.AssetCheckResult:
    """An asset check of an audit, with the address of a page that tells more. Dagster knows no third state: not enough data is a
    warning, and says so."""
    status = status_of(passed, text)
    return dg.AssetCheckResult(
        passed=passed is True,
        check_name=test,
        asset_key=asset,
        severity=dg.AssetCheckSeverity.WARN if status == NOT_ENOUGH_DATA else dg.AssetCheckSeverity.ERROR,
        description=text,
        metadata={"status": status, **({"page": dg.MetadataValue.url(page)} if page else {})},
    )


@asset("audit", "pytorch", "duckdb", deps=["world_model", "feature_panel"], pool="duckdb")
def leakage_audit(
    context: dg.AssetExecutionContext, config: AuditConfig, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """The leakage, null-market, known-truth, delay and permutation tests of a planner, or of a strategy of your own. Findings
    are rows of `audit_results`; the gate refuses a challenger with a failure. The tests of every challenger are checks of
    `challenger_audit`."""
    refuse_untrusted([config.strategy])
    home, who = settings.get(), config.strategy or config.planner
    folder = checkpoint_folder(home, config.checkpoint or checkpoint_of_run(context, home).name)
    panel, run_id = panel_of_run(context, home), context.run.run_id
    asked = config.model_dump(include={"dates", "seeds", "symbols", "sessions"})
    found = {
        one.test: (status_of(one.passed, one.text), one.text)
        for one in run_audit(warehouse, home, folder, panel, who, run_id, context.log.info, **asked)
    }
    rows = [(test, *found.get(test, (NOT_RUN, "not asked for"))) for test in TESTS]
    return dg.MaterializeResult(
        metadata={
            "checkpoint": folder.name,
            "strategy": who,
            "failed": ", ".join(test for test, (status, _) in found.items() if status in ("failed", NOT_RUN)) or "none",
            "tests": dg.MetadataValue.md(
                table(("test", "result", "found"), [list(map(cell, row)) for row in rows], numbers=False)
            ),
            "findings": dg.MetadataValue.json(rows),
        }
    )


ASSETS = [planner_backtests, leaderboard, walk_forward, leakage_audit]
