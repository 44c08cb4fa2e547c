"""What a run works on. A step takes what earlier steps of its run made, and not what the home shows by then: another command may
have changed that in the meantime."""

from pathlib import Path
from typing import Any

import dagster as dg

from finjepa_pipeline.features import current_panel
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import checkpoint_here, current_checkpoint

Context = dg.AssetExecutionContext | dg.AssetCheckExecutionContext
_WITH_PANEL = ("feature_panel", "world_model", "planner_backtests", "challenger_audit")
_WITH_CHECKPOINT = ("challenger_audit", "planner_backtests", "world_model")


def event_of_run(context: Context, key: str) -> dg.EventLogEntry | None:
    """The newest materialisation of an asset in this run, or in the run that this one tries again; None where neither made it."""
    run: dg.DagsterRun | None = context.run
    while run is not None:
        found = context.instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        for record in reversed(found.records):
            made = record.event_log_entry.asset_materialization
            if made is not None and made.asset_key == dg.AssetKey(key):
                return record.event_log_entry
        run = context.instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
    return None


def made_in_run(context: Context, key: str) -> dict[str, Any]:
    """Metadata of that materialisation; empty where there is none."""
    return _metadata(event_of_run(context, key))


def made_last(context: Context, key: str) -> dict[str, Any]:
    """Metadata of the last materialisation of an asset in any run; empty where there is none."""
    return _metadata(context.instance.get_latest_materialization_event(dg.AssetKey(key)))


def prices_of_run(context: Context) -> tuple[str, str] | None:
    """Feed and data version that this run has ingested; None where it takes the home's prices as they are."""
    made = made_in_run(context, "prices")
    return (made["feed"], made["data_version"]) if made else None


def panel_of_run(context: Context, settings: Settings) -> Path:
    """The panel that this run works on; the home's where it has not made or used one yet.

    Raises:
        FinJEPAError: if there is none.
    """
    return made_panel(context, settings) or current_panel(settings)


def made_panel(context: Context, settings: Settings) -> Path | None:
    """The panel that this run has made or used; None where it has not yet."""
    used = (made_in_run(context, key).get("panel") for key in _WITH_PANEL)
    name = next((name for name in used if name is not None), None)
    return None if name is None else settings.panels / name


def checkpoint_of_run(context: Context, settings: Settings) -> Path:
    """The checkpoint that this run works on; the newest of the home where it has not made or used one yet.

    Raises:
        FinJEPAError: if there is none.
    """
    used = (made_in_run(context, key).get("checkpoint") for key in _WITH_CHECKPOINT)
    name = next((name for name in used if name is not None), None)
    return (checkpoint_here(settings, name) if name is not None else None) or current_checkpoint(settings)


def _metadata(entry: dg.EventLogEntry | None) -> dict[str, Any]:
    made = entry.asset_materialization if entry is not None else None
    return {name: value.value for name, value in made.metadata.items()} if made is not None else {}
