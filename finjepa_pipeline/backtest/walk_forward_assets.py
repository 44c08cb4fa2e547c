"""The walk-forward's door: a plan, a model a fold, the walks by fold and strategy, and the pooled leaderboard.

Folds and strategies are partitions, so that one can be run again, or added, alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from finjepa_pipeline import compute
from finjepa_pipeline.failures import final
from finjepa_pipeline.report.backtest import page_of, write_report
from finjepa_pipeline.report.history import write_history
from finjepa_pipeline.settings import Settings, SettingsResource
from finjepa_pipeline.store import keep
from finjepa_pipeline.warehouse import Warehouse

if TYPE_CHECKING:
    from finjepa_model.data.panel import Panel
    from finjepa_pipeline.backtest.docket import Docket

RIVALS = "baselines"  # one partition: they are judged together
FOLDS = dg.DynamicPartitionsDefinition(name="fold")
STRATEGIES = dg.DynamicPartitionsDefinition(name="strategy")
BY_FOLD_AND_STRATEGY = dg.MultiPartitionsDefinition({"fold": FOLDS, "strategy": STRATEGIES})


class PlanConfig(dg.Config):
    """How history is cut, and what is trained on each part."""

    folds: int = Field(default=5, ge=1, description="Number of folds.")
    scheme: str = Field(default="expanding", description="expanding, or rolling (eight years).")
    held_back: int = Field(default=504, ge=0, description="Sessions at the end that no fold sees.")
    preset: str = Field(default="tiny", description="tiny, small, base or large.")
    overrides: dict[str, str] = Field(default_factory=dict, description="Dotted config keys and their values as text.")
    strategies: list[str] = Field(
        default_factory=list, description="Planners, controls and strategies of your own that become partitions."
    )
    unseen_symbols: float = Field(default=0.2, ge=0, lt=1, description="Share of the symbols that training never sees.")


class FoldModelConfig(dg.Config):
    """With whom a fold is trained."""

    together: list[str] = Field(
        default_factory=list,
        description="Partitions whose models a Ray cluster trains beside this one, ahead of their runs.",
    )


class PoolConfig(dg.Config):
    """Which walk-forward is pooled."""

    plan: str | None = Field(default=None, description="Name of the plan; the one that was judged last when empty.")


class FoldBacktestConfig(dg.Config):
    """What differs from the plan."""

    together: list[str] = Field(
        default_factory=list, description="Partitions that are judged beside this one, ahead of their runs."
    )

    n_assets: int = Field(default=20, ge=2, description="Largest universe that is traded.")
    utility: str | None = Field(
        default=None, description="What a planner maximises, e.g. log_growth - 5*variance; its own when empty."
    )
    fill: str = Field(default="close", description="Orders are filled at the next close, or at the next open.")
    open_held_back: bool = Field(
        default=False, description="Judge on the held-back block as well; every opening is recorded for good."
    )


def _common(name: str) -> dict:
    return {"name": name, "group_name": "walk_forward", "owners": ["team:finjepa"]}


@dg.asset(**_common("walk_forward_plan"), deps=["feature_panel"], kinds={"duckdb"}, pool="duckdb")
@final
def walk_forward_plan(
    context: dg.AssetExecutionContext, config: PlanConfig, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """The folds with their dates: training, validation and test block, purged and embargoed, and the block held back."""
    from finjepa_model.config import preset
    from finjepa_model.data.panel import Panel
    from finjepa_pipeline.backtest.folds import make_plan, store_plan
    from finjepa_pipeline.features import current_panel
    from finjepa_pipeline.training.checkpoints import for_panel

    panel = Panel.open(current_panel(settings.get()))
    overrides = dict(config.overrides) | {"training.unseen_symbols": str(config.unseen_symbols)}
    wanted = for_panel(preset(config.preset).override(overrides), panel)
    plan = make_plan(panel, wanted, count=config.folds, scheme=config.scheme, held_back=config.held_back)
    with warehouse.connect() as con:
        store_plan(con, panel, plan)
    context.instance.add_dynamic_partitions("fold", [f"{plan.name}:{fold.name}" for fold in plan.folds])
    context.instance.add_dynamic_partitions("strategy", [RIVALS, *config.strategies])
    spans = [
        [
            fold.name,
            *(f"{panel.dates[lo]} to {panel.dates[hi - 1]}" for lo, hi in (fold.train, fold.validation, fold.test)),
        ]
        for fold in plan.folds
    ]
    lo, hi = plan.held_back
    lines = [
        "| fold | train | validation | test |",
        "|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in spans),
    ]
    return dg.MaterializeResult(
        metadata={
            "plan": plan.name,
            "folds": dg.MetadataValue.md("\n".join(lines)),
            "held_back": f"{panel.dates[lo]} to {panel.dates[hi - 1]}" if hi > lo else "nothing",
            "partitions": dg.MetadataValue.json([f"{plan.name}:{fold.name}" for fold in plan.folds]),
        },
        data_version=dg.DataVersion(plan.name),
    )


@dg.asset(**_common("fold_models"), deps=["walk_forward_plan"], partitions_def=FOLDS, kinds={"pytorch"}, pool="gpu")
@final
def fold_models(
    context: dg.AssetExecutionContext, config: FoldModelConfig, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """The world model of a fold: it has seen nothing after the fold's training block, its pretraining included."""
    from finjepa_model.data.panel import Panel
    from finjepa_pipeline.backtest.folds import stored_plan
    from finjepa_pipeline.features import current_panel
    from finjepa_pipeline.training.checkpoints import train_side_by_side
    from finjepa_pipeline.training.step import train_in_step

    home = settings.get()
    panel = Panel.open(current_panel(home))
    plan, _, fold = context.partition_key.partition(":")
    with warehouse.connect() as con:  # on the panel that the plan was made for
        wanted = {
            key: stored_plan(con, panel, plan).fold(key.partition(":")[2]).config
            for key in dict.fromkeys((context.partition_key, *config.together))
        }
    model = wanted[context.partition_key]
    where = compute.ranks(home, None if home.ray_address is None else 1)
    if config.together:
        train_side_by_side(home, panel, wanted, where, context.log.info)
    fold_key = context.partition_key
    folder, reused = train_in_step(context, home, warehouse, panel, model, where, make_current=False, fold=fold_key)
    with warehouse.connect() as con:
        con.execute(
            "UPDATE main.walk_forward_folds SET checkpoint = ? WHERE plan = ? AND fold = ?", [folder.name, plan, fold]
        )
    return dg.MaterializeResult(
        metadata={"checkpoint": folder.name, "reused": reused, "path": dg.MetadataValue.path(str(folder))},
        data_version=dg.DataVersion(folder.name),
    )


@dg.asset(
    **_common("fold_backtests"),
    deps=[dg.AssetDep("fold_models", partition_mapping=dg.MultiToSingleDimensionPartitionMapping("fold"))],
    partitions_def=BY_FOLD_AND_STRATEGY,
    kinds={"pytorch", "duckdb"},
    pool="duckdb",
)
@final
def fold_backtests(
    context: dg.AssetExecutionContext, config: FoldBacktestConfig, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """One strategy (or all baselines) on one fold: validation block, test block, and the symbols that training never saw."""
    from finjepa_model.config import FinJEPAConfig
    from finjepa_model.data.panel import Panel
    from finjepa_pipeline.backtest.docket import Block
    from finjepa_pipeline.backtest.evaluate import run_backtests
    from finjepa_pipeline.backtest.folds import fold_blocks, record_opening, stored_plan
    from finjepa_pipeline.features import current_panel

    home = settings.get()
    folder = current_panel(home)
    panel = Panel.open(folder)
    assert isinstance(context.partition_key, dg.MultiPartitionKey)
    keys = context.partition_key.keys_by_dimension
    name, _, fold_name = keys["fold"].partition(":")
    who = keys["strategy"]
    with warehouse.connect() as con:
        checkpoint = _of_fold(con, name, fold_name, "checkpoint")
        wanted = FinJEPAConfig.from_json(_of_fold(con, name, fold_name, "config_json"))
        plan = stored_plan(con, panel, name)
        blocks = fold_blocks(panel, plan.fold(fold_name))
        opened = None
        if config.open_held_back and plan.held_back[1] > plan.held_back[0] and fold_name == plan.folds[-1].name:
            opened = record_opening(con, panel, plan, checkpoint, context.run.run_id)
            blocks.append(Block("held_back", *plan.held_back))
    together = [str(context.partition_key), *config.together]
    ahead = _judge_together(warehouse, home, panel, together, config, context) if config.together else 0
    docket = docket_of(who, config)
    run = run_backtests(warehouse, home.checkpoints / checkpoint, folder, docket, context.log.info, blocks, home)
    return dg.MaterializeResult(
        metadata={
            "checkpoint": checkpoint,
            "walked": run.walked,
            "reused": run.walked == 0,
            "blocks": dg.MetadataValue.json({block: list(dates) for block, dates in run.blocks.items()}),
            "stride": wanted.model.stride,
            "walked_together": ahead,
            **({"held_back_opening": opened} if opened is not None else {}),
        }
    )


@dg.asset(**_common("walk_forward_leaderboard"), deps=["fold_backtests"], kinds={"duckdb", "plotly"}, pool="duckdb")
@final
def walk_forward_leaderboard(
    context: dg.AssetExecutionContext, config: PoolConfig, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """A plan: a leaderboard of every fold, and one of all test blocks chained, with its report."""
    from finjepa_pipeline.backtest.folds import judged_plan, pool
    from finjepa_pipeline.backtest.leaderboard import build_leaderboard
    from finjepa_pipeline.backtest.report_data import leaderboard_history, report_of
    from finjepa_pipeline.backtest.trials import never_judged
    from finjepa_pipeline.prices.history import feed_of_content

    home = settings.get()
    with warehouse.connect() as con:
        plan, folds = judged_plan(con, config.plan)
        version = pool(con, plan)
        labels = {"run_id": context.run.run_id, "feed": feed_of_content(con, version)}
        untried = never_judged(con, home.checkpoints)
        for fold, checkpoint in folds:
            build_leaderboard(con, checkpoint, version, untried=untried, labels=labels | {"fold": fold})
        build_leaderboard(con, plan, version, untried=untried, labels=labels | {"fold": "all folds"})
        found = report_of(con, home.checkpoints / plan, version)
        history = leaderboard_history(con)
    write_history(home.reports / "leaderboard.html", history, home.checkpoints, home.ui_url)
    report = page_of(home.reports, plan, version)
    write_report(report, f"FinJEPA {plan}", found)
    keep(home, report.parent)
    return dg.MaterializeResult(
        metadata={
            "plan": plan,
            "checkpoint": plan,
            "verdict": found.headline,
            "report": dg.MetadataValue.path(str(report)),
            "folds": len(folds),
        },
        data_version=dg.DataVersion(f"{plan}-{version}"),
    )


def _judge_together(
    warehouse: Warehouse,
    home: Settings,
    panel: "Panel",
    partitions: Sequence[str],
    config: FoldBacktestConfig,
    context: dg.AssetExecutionContext,
) -> int:
    """Judge several folds and strategies at once, so that their own runs find it done; returns the number of walks."""
    from finjepa_pipeline.backtest.evaluate import hearings, judge
    from finjepa_pipeline.backtest.folds import fold_blocks, stored_plan

    seen: set[tuple[str, str]] = set()
    pending = []
    for partition in dict.fromkeys(partitions):
        key, _, who = partition.partition("|")
        name, _, fold = key.partition(":")
        with warehouse.connect() as con:
            checkpoint = home.checkpoints / _of_fold(con, name, fold, "checkpoint")
            blocks = fold_blocks(panel, stored_plan(con, panel, name).fold(fold))
        for hearing in hearings(warehouse, checkpoint, panel, docket_of(who, config), blocks):
            names = tuple(name for name in hearing.names if (hearing.case.court, name) not in seen)
            seen |= {(hearing.case.court, name) for name in names}
            if names:
                pending.append(dataclasses.replace(hearing, names=names))
    judge(warehouse, pending, context.log.info, home)
    return len(seen)


def docket_of(who: str, config: FoldBacktestConfig) -> "Docket":
    """Who is walked for the partition of one strategy; 1/N always is, since everybody is compared with it."""
    from finjepa_model.errors import FinJEPAError
    from finjepa_model.planners import PLANNERS
    from finjepa_pipeline.backtest.baselines import baselines
    from finjepa_pipeline.backtest.controls import CONTROLS
    from finjepa_pipeline.backtest.docket import Docket, parse_planners
    from finjepa_pipeline.backtest.user_strategy import refuse_untrusted

    refuse_untrusted([who] if ":" in who else [])
    docket = Docket(
        planners=parse_planners(who, config.utility) if who in PLANNERS else (),
        controls=(who,) if who in CONTROLS else (),
        specs=(who,) if ":" in who else (),
        n_assets=config.n_assets,
        fill=config.fill,
    )
    rivals = tuple(s.name for s in baselines())
    mine = (*docket.planners, *docket.controls, *docket.own) or ((who,) if who in rivals else ())
    if not mine and who != RIVALS:
        raise FinJEPAError(
            f"the partition {who!r} is no planner, control, baseline or strategy of your own; delete it, and run "
            "finjepa backtest --folds with a name that --planner or --controls lists"
        )
    return dataclasses.replace(docket, only=mine or rivals)


def _of_fold(con, plan: str, fold: str, column: str) -> str:
    from finjepa_model.errors import FinJEPAError
    from finjepa_pipeline.warehouse import sql

    con.execute(sql("walk_forward_folds"))
    found = con.execute(
        f"SELECT {column} FROM main.walk_forward_folds WHERE plan = ? AND fold = ?", [plan, fold]
    ).fetchone()
    if found is None or found[0] is None:
        raise FinJEPAError(f"fold {fold} of {plan} has no {column.removesuffix('_json')} yet; run what comes before it")
    return str(found[0])


ASSETS = [walk_forward_plan, fold_models, fold_backtests, walk_forward_leaderboard]
