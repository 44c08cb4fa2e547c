"""The sweep's door: trainings that differ in some keys of the config, or in their seed: an ablation grid, or an ensemble."""

import dagster as dg
from pydantic import Field

from finjepa_model.config import preset
from finjepa_model.data.panel import Panel
from finjepa_pipeline.failures import final
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.report.markdown import cell
from finjepa_pipeline.settings import SettingsResource
from finjepa_pipeline.training.run import for_panel, ranks
from finjepa_pipeline.training.step import train_in_step
from finjepa_pipeline.training.sweep import Ended, variants
from finjepa_pipeline.warehouse import Warehouse


class SweepConfig(dg.Config):
    """What is trained, and how often."""

    preset: str = Field(default="small", description="tiny, small, base or large.")
    overrides: dict[str, str] = Field(default_factory=dict, description="Dotted config keys that all trainings share.")
    grid: dict[str, list[str]] = Field(
        default_factory=dict,
        description='Dotted config keys and the values to try, as in {"loss.recipe": ["ema", "both"]}.',
    )
    seeds: list[int] = Field(default_factory=lambda: [0], description="Every point of the grid is trained with each.")
    metric: str = Field(
        default="loss",
        description="Number of the validation records, lower is better; another one for a grid over loss.*.",
    )
    stop_early: bool = Field(
        default=True, description="On a cluster, end what falls behind; False for an ensemble, which wants every seed."
    )


@dg.asset(
    name="model_sweep",
    group_name="model",
    deps=["feature_panel"],
    owners=["team:finjepa"],
    kinds={"pytorch"},
    pool="gpu",
)
@final
def model_sweep(
    context: dg.AssetExecutionContext, config: SweepConfig, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """Checkpoints of a grid of configs and seeds, with their validation losses. On a Ray cluster they train side by side, and
    what falls behind is stopped early (ASHA); on one machine each is trained to its end, one after the other. None of them
    becomes the newest checkpoint: choose one, or several, by their ids."""
    home = settings.get()
    panel = Panel.open(current_panel(home))
    wanted = {
        name: for_panel(preset(config.preset).override({**config.overrides, **changes}), panel)
        for name, changes in variants(config.grid, config.seeds).items()
    }
    where = ranks(home, 1)
    ended: dict[str, Ended] = {}
    if home.ray_address is not None:
        from finjepa_pipeline.scale.trials import run_trials

        ended = run_trials(home, panel, wanted, config.metric, config.stop_early, where["threads"], context.log.info)

    checkpoints = {}
    for name, variant in wanted.items():
        if name in ended and not ended[name].whole:
            continue
        folder, _ = train_in_step(context, home, warehouse, panel, variant, where, make_current=False, curves=False)
        checkpoints[name] = folder.name
        ended[name] = Ended.of(folder, config.metric)
    rows = [
        [name, f"{end.value:.4g}", str(end.steps), checkpoints.get(name, end.why)]
        for name, end in sorted(ended.items(), key=lambda one: one[1].value)
    ]
    head = [["training", f"validation {config.metric}", "steps", "checkpoint"], ["---", "--:", "--:", "---"]]
    return dg.MaterializeResult(
        metadata={
            "trainings": dg.MetadataValue.md("\n".join(f"| {' | '.join(map(cell, row))} |" for row in head + rows)),
            "rows": dg.MetadataValue.json(rows),
            "checkpoints": dg.MetadataValue.json(checkpoints),
            "stopped_early": sum(not end.whole for end in ended.values()),
            "panel": panel.content_hash,
        }
    )
