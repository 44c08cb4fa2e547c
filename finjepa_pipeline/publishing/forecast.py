"""The forecast for a date on the prices of the home, and how good such forecasts were."""

from typing import Any

from finjepa_model import FinJEPA
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import history_needed
from finjepa_model.forecast import Tables, forecast_at
from finjepa_model.market_view import next_universe
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.publishing.decision import decision_session
from finjepa_pipeline.publishing.gate import current_champion
from finjepa_pipeline.report.risk import in_words
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import current_checkpoint, named_checkpoint
from finjepa_pipeline.training.scorecard import read_scorecard
from finjepa_pipeline.warehouse import Warehouse


def forecast(settings: Settings, checkpoint: str | None, as_of: str | None, n_assets: int) -> dict[str, Any]:
    """Forecast by a checkpoint (by default the champion, or the newest where there is none) on the prices of the home.

    Returns:
        `finjepa_model.forecast.Forecast.to_dict`, with checkpoint and data_version; `scored` says in words how good forecasts of
        this checkpoint were.

    Raises:
        FinJEPAError: if there is no such checkpoint or date, or if no asset has enough history by then.
    """
    panel = Panel.open(current_panel(settings))
    if checkpoint is None:
        with Warehouse.from_settings(settings).connect() as con:
            champion = current_champion(con)
        checkpoint = champion.checkpoint if champion is not None else None
    named = named_checkpoint(settings, checkpoint or current_checkpoint(settings))
    model = FinJEPA.from_pretrained(named.folder)
    session = decision_session(panel, as_of)
    assets_N = next_universe(None, panel, session, n_assets, history_needed(model.config)).assets_N
    tables = Tables(tuple(panel.assets[asset] for asset in assets_N))
    card = read_scorecard(settings, named.name)
    return forecast_at(model, panel, session, assets_N, tables).to_dict() | {
        "checkpoint": named.name,
        "data_version": panel.manifest["data_version"],
        "scored": "Forecasts of this checkpoint were not scored in this home." if card is None else in_words(card),
    }
