"""The door of the publishing stage: `champion`, `hub_release` and `daily_decision`."""

from pathlib import Path

import dagster as dg
from pydantic import Field

from finjepa_model.errors import FinJEPAError
from finjepa_model.training.panel import Panel
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.pictures import as_markdown, new_figure
from finjepa_pipeline.publishing.gate import Champion, current_champion, judge
from finjepa_pipeline.settings import Settings, SettingsResource
from finjepa_pipeline.training.run import current_checkpoint
from finjepa_pipeline.warehouse import Warehouse


class PublishConfig(dg.Config):
    """Where the champion goes."""

    hub_repo_id: str | None = Field(default=None, description="owner/name on the Hub; FINJEPA_HUB_REPO_ID when empty.")
    dry_run: bool = Field(default=False, description="Say what would be released, and release nothing.")


class DecisionConfig(dg.Config):
    """Who decides, and when."""

    as_of: str | None = Field(default=None, description="Date, YYYY-MM-DD; the newest close when empty.")
    checkpoint: str | None = Field(
        default=None, description="Checkpoint folder or Hub repository; the champion when empty."
    )
    planner: str | None = Field(default=None, description="The champion's own when empty, or else mppi.")


@dg.asset(
    name="champion",
    group_name="publishing",
    deps=["leaderboard", "world_model_evaluation"],
    owners=["team:finjepa"],
    kinds={"duckdb"},
    pool="duckdb",
    metadata={"dagster/table_name": "main.champions"},
)
def champion(settings: SettingsResource, warehouse: Warehouse) -> dg.MaterializeResult:
    """Whether the newest checkpoint replaces the trusted one: judged on the validation block, with every reason."""
    home = settings.get()
    data_version = str(Panel.open(current_panel(home)).manifest["data_version"])
    with warehouse.connect() as connection:
        verdict = judge(connection, current_checkpoint(home), data_version)
    return dg.MaterializeResult(
        metadata={
            "challenger": verdict.challenger,
            "champion": verdict.champion or "",
            "verdict": verdict.verdict,
            "reasons": "; ".join(verdict.reasons),
            "strategy": verdict.strategy or "",
            **({} if verdict.probability_better is None else {"probability_better": verdict.probability_better}),
            "reused": not verdict.new,
        },
        data_version=dg.DataVersion(verdict.champion or "none"),
    )


@dg.asset(
    name="hub_release",
    group_name="publishing",
    deps=["champion"],
    owners=["team:finjepa"],
    kinds={"huggingface"},
    pool="duckdb",
    metadata={"dagster/table_name": "main.releases"},
)
def hub_release(config: PublishConfig, settings: SettingsResource, warehouse: Warehouse) -> dg.MaterializeResult:
    """The champion with its model card, under FINJEPA_HOME/releases/ and, where a repository is named, as one commit and
    one tag on the Hub. Nothing is released twice."""
    from finjepa_pipeline.publishing.release import plan_release, release

    home = settings.get()
    winner = _champion(warehouse)
    repo_id = config.hub_repo_id or home.hub_repo_id
    if winner is None:
        return dg.MaterializeResult(metadata={"outcome": "no champion, so nothing is released", "reused": True})
    if config.dry_run:
        plan = plan_release(home, warehouse, winner, repo_id)
        return dg.MaterializeResult(metadata={"outcome": f"dry run: {plan}", "reused": True})
    made = release(home, warehouse, winner, repo_id)
    return dg.MaterializeResult(
        metadata={
            "outcome": made.note,
            "tag": made.package.tag,
            "content_hash": made.package.content_hash,
            "path": dg.MetadataValue.path(str(made.package.folder)),
            "model_card": dg.MetadataValue.md((made.package.folder / "README.md").read_text(encoding="utf-8")),
            **({"url": dg.MetadataValue.url(made.url), "commit": made.commit or ""} if made.url else {}),
            "reused": not made.new,
        },
        data_version=dg.DataVersion(made.package.content_hash),
    )


@dg.asset(
    name="daily_decision",
    group_name="publishing",
    deps=["champion", "feature_panel"],
    owners=["team:finjepa"],
    kinds={"duckdb"},
    pool="duckdb",
    metadata={"dagster/table_name": "main.decisions"},
)
def daily_decision(config: DecisionConfig, settings: SettingsResource, warehouse: Warehouse) -> dg.MaterializeResult:
    """Weights, signals and hedge for the next session, and what the model expects of them."""
    from finjepa_pipeline.publishing.decision import decide, store_decision

    home = settings.get()
    winner = _champion(warehouse)
    checkpoint, planner = _who_decides(config, home, winner)
    decision = decide(checkpoint, Panel.open(current_panel(home)), planner, config.as_of)
    with warehouse.connect() as connection:
        path, new = store_decision(connection, decision, home.reports / "decisions")
    figure = new_figure(2.4)
    axes = figure.subplots()
    axes.bar(list(decision.positions), list(decision.positions.values()))
    axes.tick_params(axis="x", rotation=60, labelsize=7)
    axes.set_ylabel("share of wealth")
    return dg.MaterializeResult(
        metadata={
            "date": decision.date,
            "positions": dg.MetadataValue.md(as_markdown(figure, "positions")),
            "hedge": decision.hedge,
            "cash": decision.cash,
            "expected_return": decision.expected_return,
            "expected_volatility": decision.expected_volatility,
            "planner": decision.planner,
            "checkpoint": decision.checkpoint,
            "path": dg.MetadataValue.path(str(path)),
            "decision": dg.MetadataValue.json(decision.to_json()),
            "reused": not new,
        },
        data_version=dg.DataVersion(f"{decision.date}-{decision.checkpoint}-{decision.data_version}"),
    )


def _champion(warehouse: Warehouse) -> Champion | None:
    with warehouse.connect() as connection:
        return current_champion(connection)


def _who_decides(config: DecisionConfig, settings: Settings, winner: Champion | None) -> tuple[str | Path, str]:
    if config.checkpoint is not None:
        own = settings.checkpoints / config.checkpoint
        return own if own.is_dir() else config.checkpoint, config.planner or "mppi"
    if winner is None:
        raise FinJEPAError("there is no champion yet; run `finjepa demo`, or name one with --checkpoint")
    return settings.checkpoints / winner.checkpoint, config.planner or winner.strategy


ASSETS = [champion, hub_release, daily_decision]
CHECKS: list[dg.AssetChecksDefinition] = []
