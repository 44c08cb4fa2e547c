"""The door of the backtest stage: `planner_backtests` and `leaderboard`."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
from pydantic import Field

from finjepa_pipeline.backtest.charges import NOT_ENOUGH_DATA, TESTS, verdict_of
from finjepa_pipeline.backtest.walk_forward_assets import ASSETS as WALK_FORWARD
from finjepa_pipeline.failures import final
from finjepa_pipeline.report import metadata
from finjepa_pipeline.report.backtest import page_of, write_report
from finjepa_pipeline.report.history import write_history
from finjepa_pipeline.report.markdown import cell
from finjepa_pipeline.run_inputs import checkpoint_of_run, made_in_run, made_last, panel_of_run
from finjepa_pipeline.settings import SettingsResource
from finjepa_pipeline.store import keep
from finjepa_pipeline.training.checkpoints import current_checkpoint
from finjepa_pipeline.warehouse import Warehouse


class BacktestConfig(dg.Config):
    """Who is judged."""

    planner: str = Field(default="cem,mppi", description="Comma list of planners.")
    utility: str | None = Field(
        default=None, description="What they maximise, e.g. log_growth - 5*variance; their own when empty."
    )
    controls: str = Field(default="ewma,ridge", description="Comma list of model-matched controls, or all, or none.")
    strategies: list[str] = Field(
        default_factory=list, description="Strategies of your own, as module:callable or file.py:callable."
    )
    fill: str = Field(default="close", description="Orders are filled at the next close, or at the next open.")
    checkpoint: str | None = Field(default=None, description="Id of a checkpoint of this home; the newest when empty.")
    n_assets: int = Field(default=20, ge=2, description="Largest universe that is traded.")


@dg.asset(
    name="planner_backtests",
    group_name="backtest",
    deps=["world_model", "world_model_evaluation", "feature_panel"],
    owners=["team:finjepa"],
    kinds={"pytorch", "duckdb"},
    pool="duckdb",
)
@final
def planner_backtests(
    context: dg.AssetExecutionContext, config: BacktestConfig, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """Daily returns of each planner and baseline on the validation and the test block: decided at a close, filled at the
    next, after costs. A walk that is stored already is not walked again."""
    from finjepa_pipeline.backtest.controls import CONTROLS
    from finjepa_pipeline.backtest.docket import Docket, parse_names, parse_planners
    from finjepa_pipeline.backtest.evaluate import checkpoint_folder, run_backtests
    from finjepa_pipeline.backtest.user_strategy import refuse_untrusted

    refuse_untrusted(config.strategies)
    home = settings.get()
    docket = Docket(
        planners=parse_planners(config.planner, config.utility),
        controls=parse_names(config.controls, CONTROLS, "control"),
        specs=tuple(config.strategies),
        n_assets=config.n_assets,
        fill=config.fill,
    )
    folder = checkpoint_folder(home, config.checkpoint or checkpoint_of_run(context, home).name)
    panel = panel_of_run(context, home)
    run = run_backtests(warehouse, folder, panel, docket, context.log.info, settings=home)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": run.rows,
            "checkpoint": run.checkpoint,
            "data_version": run.data_version,
            "feed": run.feed,
            "panel": panel.name,
            "strategies": ", ".join(run.strategies),
            "planners": ", ".join(docket.planners),
            "blocks": dg.MetadataValue.json({name: list(dates) for name, dates in run.blocks.items()}),
            "walked": run.walked,
            "reused": run.walked == 0,
        },
        data_version=dg.DataVersion(f"{run.checkpoint}-{run.data_version}"),
    )


@dg.asset(
    name="leaderboard",
    config_schema={},  # without it any key is accepted, and dropped
    group_name="backtest",
    deps=["planner_backtests"],
    owners=["team:finjepa"],
    kinds={"duckdb", "plotly"},
    pool="duckdb",
    metadata={"dagster/table_name": "main.leaderboard"},
)
@final
def leaderboard(
    context: dg.AssetExecutionContext, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """Every strategy with its metrics, and the bootstrap interval of its Sharpe ratio minus that of 1/N; and the report."""
    from finjepa_pipeline.backtest.leaderboard import build_leaderboard
    from finjepa_pipeline.backtest.report_data import leaderboard_history, report_of
    from finjepa_pipeline.backtest.trials import never_judged

    home = settings.get()
    judged = made_in_run(context, "planner_backtests") or made_last(context, "planner_backtests")
    checkpoint = str(judged["checkpoint"]) if judged else current_checkpoint(home).name
    data_version = str(judged["data_version"]) if judged else ""
    history = home.reports / "leaderboard.html"
    with warehouse.connect() as connection:
        labels = {"fold": "single", "run_id": context.run.run_id, "feed": judged.get("feed")}
        written = build_leaderboard(
            connection, checkpoint, data_version, untried=never_judged(connection, home.checkpoints), labels=labels
        )
        found = report_of(connection, home.checkpoints / checkpoint, data_version)
        [(newest,)] = connection.execute("SELECT max(created_at) FROM main.leaderboard").fetchall()
        if not _is_current(history, newest):
            write_history(history, leaderboard_history(connection), home.checkpoints, home.ui_url)
    report = page_of(home.reports, checkpoint, data_version)
    if written or not _is_current(report, newest):
        write_report(report, f"FinJEPA {checkpoint}", found)
    keep(home, report.parent)
    said = next(iter(found.of("inference").to_dicts()), {})
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(found.rows),
            "checkpoint": checkpoint,
            "data_version": data_version,
            "verdict": found.headline,
            "traded": found.traded,
            "report": dg.MetadataValue.path(str(report)),
            "everything_ever_judged": dg.MetadataValue.path(str(history)),
            **{
                name: said[name]
                for name in ("trials", "effective_trials", "pbo", "spa_p")
                if said.get(name) is not None
            },
            "test_block": dg.MetadataValue.md(_markdown(found.test)),
            "wealth": dg.MetadataValue.md(metadata.wealth(found.returns)),
            "calibration": dg.MetadataValue.md(metadata.calibration(found.expectations)),
            "reused": not written,
        },
        data_version=dg.DataVersion(f"{checkpoint}-{data_version}"),
    )


def _markdown(rows: list[dict]) -> str:
    lines = [
        "| strategy | Sharpe | minus 1/N | 95 % interval | DSR | return | drawdown |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        numbers = [row[name] for name in ("sharpe", "excess_sharpe", "excess_low", "excess_high", "dsr")]
        sharpe, excess, low, high, dsr = ("–" if value is None else f"{value:.2f}" for value in numbers)
        interval = "too short" if row["excess_low"] is None else f"{low} to {high}"
        lines.append(
            f"| {cell(row['strategy'])} | {sharpe} | {excess} | {interval} | {dsr} | {row['annual_return']:.1%} "
            f"| {row['max_drawdown']:.1%} |"
        )
    return "\n".join(lines)


def _is_current(page: Path, since: datetime | None) -> bool:
    """Whether a page is younger than the newest row that it shows; a process that was killed in between left the older one."""
    return page.is_file() and (since is None or page.stat().st_mtime >= since.replace(tzinfo=UTC).timestamp())


def check_result(asset: str, test: str, passed: bool | None, text: str) -> dg.AssetCheckResult:
    """An asset check of an audit. Dagster knows no third state: not enough data is a warning, and says so."""
    verdict = verdict_of(passed, text)
    return dg.AssetCheckResult(
        passed=passed is True,
        check_name=test,
        asset_key=asset,
        severity=dg.AssetCheckSeverity.WARN if verdict == NOT_ENOUGH_DATA else dg.AssetCheckSeverity.ERROR,
        description=text,
        metadata={"verdict": verdict},
    )


class AuditConfig(dg.Config):
    """Who is put on trial, and how long the trial may take."""

    planner: str = Field(default="mppi", description="Planner on the checkpoint's world model.")
    strategy: str | None = Field(
        default=None, description="A strategy of your own instead, as module:callable or file.py:callable."
    )
    checkpoint: str | None = Field(default=None, description="Id of a checkpoint of this home; the newest when empty.")
    dates: int = Field(default=2, ge=1, description="Random dates at which the future is changed; three rebuilds each.")
    seeds: int = Field(default=4, ge=0, description="Null markets, and a quarter as many planted ones; 0 for none.")
    symbols: int = Field(default=20, ge=3, description="Symbols of the home's prices that are rebuilt.")
    sessions: int = Field(default=1500, ge=500, description="Newest sessions of them.")


@dg.multi_asset_check(
    name="audit_trial",
    specs=[dg.AssetCheckSpec(name, asset="planner_backtests", description=what) for name, what in TESTS.items()],
    can_subset=True,  # a test that was not asked for has no result, rather than a good one
    pool="duckdb",
)
@final
def audit(
    context: dg.AssetCheckExecutionContext, config: AuditConfig, settings: SettingsResource, warehouse: Warehouse
) -> Iterator[dg.AssetCheckResult]:
    """The null, planted, leak, delay and permutation tests of a planner, or of a strategy of the user's."""
    from finjepa_pipeline.backtest.evaluate import checkpoint_folder
    from finjepa_pipeline.backtest.trial import hold_trial
    from finjepa_pipeline.backtest.user_strategy import refuse_untrusted

    refuse_untrusted([config.strategy])
    home = settings.get()
    folder = checkpoint_folder(home, config.checkpoint or checkpoint_of_run(context, home).name)
    only = {key.name for key in context.selected_asset_check_keys}
    scale = {name: getattr(config, name) for name in ("dates", "seeds", "symbols", "sessions")}
    for finding in hold_trial(
        warehouse,
        home,
        folder,
        panel_of_run(context, home),
        config.strategy or config.planner,
        context.run.run_id,
        context.log.info,
        only=only,
        **scale,
    ):
        yield check_result("planner_backtests", finding.test, finding.passed, finding.text).with_metadata(
            {"value": finding.value, "strategy": config.strategy or config.planner}
        )


ASSETS = [planner_backtests, leaderboard, *WALK_FORWARD]
CHECKS: list[dg.AssetChecksDefinition] = [audit]
