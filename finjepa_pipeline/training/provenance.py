"""What is stored with a checkpoint so that it can be made again: its lineage, as the run that trains it knows it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.batches import split_dates
from finjepa_model.data.panel import Panel
from finjepa_pipeline.prices.history import find_revision
from finjepa_pipeline.training.code import training_code_version
from finjepa_pipeline.training.lineage import build_inputs, lineage, upstream_materializations
from finjepa_pipeline.warehouse import Warehouse

if TYPE_CHECKING:
    import dagster as dg

_UPSTREAM = (
    "price_source", "raw_prices", "prices", "quarantined_prices", "corporate_actions", "entities", "adjusted_prices", "universe",
    "feature_panel",
)  # fmt: skip


def provenance(
    context: "dg.AssetExecutionContext",
    warehouse: Warehouse,
    panel: Panel,
    config: FinJEPAConfig,
    where: Mapping[str, Any],
    fold: str | None = None,
) -> dict[str, Any]:
    """The content of `lineage.json`.

    Args:
        where: processes, threads and device, as `ranks` finds them.
        fold: partition of the walk-forward that the checkpoint is for.
    """
    data = {"data_version": panel.manifest["data_version"], "assets": len(panel.assets)}
    with warehouse.connect() as connection:
        revision = find_revision(connection, panel.manifest["feed"], data["data_version"])
        inputs = build_inputs(connection, panel.manifest)
    if revision is not None:
        data |= {name: str(value) if name.endswith("date") else value for name, value in vars(revision).items()}
    if fold is not None:
        data["fold"] = fold
    return lineage(
        config=config.to_dict(),
        seed=config.training.seed,
        data=data,
        panel_hash=panel.content_hash,
        blocks=split_dates(len(panel.dates), config).dates(panel.dates),
        build=inputs
        | {"channels": list(panel.channels), "training_code": training_code_version(config.td.enabled)}
        | {"processes": where["processes"], "threads": where["threads"]},
        device=where["device"],
        run_id=context.run.run_id,
        upstream=upstream_materializations(context, _UPSTREAM),
    )
