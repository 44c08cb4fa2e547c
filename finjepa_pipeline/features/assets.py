"""The asset of the features stage: `feature_panel`."""

from pathlib import Path

import dagster as dg
from pydantic import Field

from finjepa_model.data.panel import Panel
from finjepa_model.features import CHANNELS
from finjepa_pipeline.features.panel import CODE_VERSION, build_panel, current_panel
from finjepa_pipeline.report.markdown import channel_table
from finjepa_pipeline.runs import asset, made_in_run, prices_of_run
from finjepa_pipeline.settings import Settings, SettingsResource
from finjepa_pipeline.warehouse import Warehouse

_WITH_PANEL = ("feature_panel", "world_model", "planner_backtests", "challenger_audit")


class PanelConfig(dg.Config):
    """What goes into the panel."""

    channels: list[str] = Field(
        default_factory=list,
        description="Channels to keep; all that the source allows when empty, e.g. [log_return, realised_volatility_21]",
    )


@asset(
    "features",
    "polars",
    deps=["adjusted_prices", "corporate_actions", "universe"],
    pool="duckdb",
    code_version=CODE_VERSION,
)
def feature_panel(
    context: dg.AssetExecutionContext, config: PanelConfig, settings: SettingsResource, warehouse: Warehouse
) -> dg.MaterializeResult:
    """Causal, normalised channels of every asset on every session, with returns and masks: a memory-mapped folder that
    training and backtest open without loading it."""
    home = settings.get()
    before = set(home.panels.glob("*"))
    with warehouse.connect() as connection:
        folder = build_panel(connection, home, config.channels, of=prices_of_run(context))
    panel = Panel.open(folder)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": int(panel.lengths.sum()),
            "assets": len(panel.assets),
            "sessions": len(panel.dates),
            "first_date": str(panel.dates[0]),
            "last_date": str(panel.dates[-1]),
            "channels": len(panel.channels),
            "channels_left_out": ", ".join(c.name for c in CHANNELS if c.name not in panel.channels) or "none",
            "channel_table": dg.MetadataValue.md(
                channel_table([*panel.manifest["channels"], *panel.manifest["market_channels"]])
            ),
            "bytes": sum(file.stat().st_size for file in folder.iterdir()),
            "content_hash": panel.content_hash,
            "panel": panel.content_hash,
            "data_version": panel.manifest["data_version"],
            "path": dg.MetadataValue.path(str(folder)),
            "reused": folder in before,
        },
        data_version=dg.DataVersion(panel.content_hash),
    )


def panel_of_run(context: dg.AssetExecutionContext, settings: Settings) -> Path:
    """The panel that this run works on; the home's where it has not made or used one yet.

    Raises:
        FinJEPAError: if there is none.
    """
    return made_panel(context, settings) or current_panel(settings)


def made_panel(context: dg.AssetExecutionContext, settings: Settings) -> Path | None:
    """The panel that this run has made or used; None where it has not yet."""
    used = (made_in_run(context, key).get("panel") for key in _WITH_PANEL)
    name = next((name for name in used if name is not None), None)
    return None if name is None else settings.panels / name


ASSETS = [feature_panel]
