"""The door of the backtest stage: `planner_backtests` and `leaderboard`."""

from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from finjepa_pipeline.features import current_panel
from finjepa_pipeline.pictures import as_markdown, new_figure
from finjepa_pipeline.settings import SettingsResource
from finjepa_pipeline.training.run import current_checkpoint
from finjepa_pipeline.warehouse import Warehouse, sql

if TYPE_CHECKING:
    import polars as pl


class BacktestConfig(dg.Config):
    """Who is judged."""

    planner: str = Field(default="cem,mppi", description="Comma list of planners.")
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
def planner_backtests(
    context: dg.AssetExecutionContext, config: BacktestConfig, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """Daily returns of each planner and baseline on the validation and the test block: decided at a close, filled at the
    next, after costs. A walk that is stored already is not walked again."""
    from finjepa_pipeline.backtest.controls import CONTROLS
    from finjepa_pipeline.backtest.evaluate import (
        Docket,
        checkpoint_folder,
        parse_names,
        parse_planners,
        run_backtests,
    )

    home = settings.get()
    docket = Docket(
        planners=parse_planners(config.planner),
        controls=parse_names(config.controls, CONTROLS, "control"),
        specs=tuple(config.strategies),
        n_assets=config.n_assets,
        fill=config.fill,
    )
    folder = checkpoint_folder(home, config.checkpoint)
    run = run_backtests(warehouse, folder, current_panel(home), docket, context.log.info)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": run.rows,
            "checkpoint": run.checkpoint,
            "data_version": run.data_version,
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
    group_name="backtest",
    deps=["planner_backtests"],
    owners=["team:finjepa"],
    kinds={"duckdb", "plotly"},
    pool="duckdb",
    metadata={"dagster/table_name": "main.leaderboard"},
)
def leaderboard(
    context: dg.AssetExecutionContext, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """Every strategy with its metrics, and the bootstrap interval of its Sharpe ratio minus that of 1/N; and the report."""
    from finjepa_pipeline.backtest.baselines import kind
    from finjepa_pipeline.backtest.leaderboard import build_leaderboard, leaderboard_rows, stored_returns
    from finjepa_pipeline.backtest.report import verdict, write_report
    from finjepa_pipeline.backtest.trials import never_judged
    from finjepa_pipeline.prices import current_revision

    home = settings.get()
    event = context.instance.get_latest_materialization_event(dg.AssetKey("planner_backtests"))
    judged = event.asset_materialization.metadata if event and event.asset_materialization else {}
    checkpoint = str(judged["checkpoint"].value) if judged else current_checkpoint(home).name
    data_version = str(judged["data_version"].value) if judged else ""
    with warehouse.connect() as connection:
        feed = current_revision(connection)
        labels = {"fold": "single", "run_id": context.run.run_id, "feed": feed.feed if feed else None}
        written = build_leaderboard(
            connection, checkpoint, data_version, untried=never_judged(connection, home.checkpoints), labels=labels
        )
        rows = leaderboard_rows(connection, checkpoint)
        returns = stored_returns(connection, checkpoint, data_version)
        key = {"checkpoint": checkpoint, "data_version": data_version}
        query = connection.sql(sql("backtest_decisions"), params=key)
        decisions = query.pl()
    planners = {row["strategy"] for row in rows if kind(row["strategy"]) == "planner"}
    report = home.reports / f"{checkpoint}-{data_version}" / "index.html"
    if written or not report.is_file():
        write_report(report, f"FinJEPA {checkpoint}", rows, returns, decisions, planners)
    test = [row for row in rows if row["block"] == "test"]
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(rows),
            "checkpoint": checkpoint,
            "data_version": data_version,
            "verdict": verdict(test, planners),
            "report": dg.MetadataValue.path(str(report)),
            "test_block": dg.MetadataValue.md(_markdown(test)),
            "wealth": dg.MetadataValue.md(_picture(returns)),
            "reused": not written,
        },
        data_version=dg.DataVersion(f"{checkpoint}-{data_version}"),
    )


def _markdown(rows: list[dict]) -> str:
    lines = ["| strategy | Sharpe | minus 1/N | 95 % interval | return | drawdown |", "|---|--:|--:|--:|--:|--:|"]
    for row in rows:
        numbers = [row[name] for name in ("sharpe", "excess_sharpe", "excess_low", "excess_high")]
        sharpe, excess, low, high = ("–" if value is None else f"{value:.2f}" for value in numbers)
        lines.append(
            f"| {row['strategy']} | {sharpe} | {excess} | {low} to {high} | {row['annual_return']:.1%} "
            f"| {row['max_drawdown']:.1%} |"
        )
    return "\n".join(lines)


def _picture(returns: "pl.DataFrame") -> str:
    figure = new_figure(3.0)
    axes = figure.subplots()
    for (name,), walk in returns.filter(block="test").group_by("strategy", maintain_order=True):
        axes.plot(walk["date"].to_list(), walk["wealth"].to_numpy(), label=str(name), linewidth=1)
    axes.set_yscale("log")
    axes.set_ylabel("wealth, net of costs")
    axes.legend(frameon=False, fontsize=7)
    return as_markdown(figure, "wealth on the test block")


ASSETS = [planner_backtests, leaderboard]
CHECKS: list[dg.AssetChecksDefinition] = []
