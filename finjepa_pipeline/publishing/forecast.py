"""The forecast for a date: volatilities, correlations and quantiles of returns, and how good such forecasts were."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from finjepa_model.data.batches import observe
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import history_needed
from finjepa_model.errors import FinJEPAError
from finjepa_model.nn.risk import HORIZONS, RETURN_HORIZONS
from finjepa_model.world_model import FinJEPA
from finjepa_pipeline.backtest.market_view import next_universe
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.publishing.decision import decision_session
from finjepa_pipeline.publishing.gate import current_champion
from finjepa_pipeline.report.risk import in_words
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import current_checkpoint, named_checkpoint
from finjepa_pipeline.training.scorecard import read_scorecard
from finjepa_pipeline.warehouse import Warehouse

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True)
class Forecast:
    """After the close of a date, in the order of `assets`.

    Attributes:
        volatility: by asset and horizon (5, 21, 63 sessions), daily standard deviation.
        correlation: rows and columns are assets.
        quantiles: by asset, horizon (1, 5, 21 sessions) and level, of simple returns; `portfolio` those of equal weights.
        scored: how good forecasts of this checkpoint were, in words.
    """

    date: str
    assets: list[str]
    volatility: dict[str, dict[str, float]]
    correlation: list[list[float]]
    quantiles: dict[str, dict[str, dict[str, float]]]
    portfolio: dict[str, dict[str, float]]
    checkpoint: str
    data_version: str
    scored: str


def forecast(settings: Settings, checkpoint: str | None, as_of: str | None, n_assets: int) -> Forecast:
    """Forecast by a checkpoint (by default the champion, or the newest where there is none) on the prices of the home.

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
    universe = next_universe(None, panel, session, n_assets, history_needed(model.config))
    if universe is None or not len(universe.assets_N):
        raise FinJEPAError(f"no asset has {history_needed(model.config)} sessions of history on {panel.dates[session]}")
    found = model.forecast_risk(observe(panel, np.array([session]), universe.assets_N[None], 1, model.config))
    names = [panel.assets[asset] for asset in universe.assets_N]
    by_horizon = {horizon: found.quantiles(QUANTILES, horizon)[0].tolist() for horizon in RETURN_HORIZONS}
    equal_11N = found.volatility_BNV.new_full((1, 1, len(names)), 1 / len(names))
    card = read_scorecard(settings, named.name)
    return Forecast(
        date=str(panel.dates[session]),
        assets=names,
        volatility=dict(zip(names, map(_by_horizon, found.volatility_BNV[0].tolist()), strict=True)),
        correlation=found.correlation_BNN[0].tolist(),
        quantiles={
            name: {str(horizon): _by_level(rows[n]) for horizon, rows in by_horizon.items()}
            for n, name in enumerate(names)
        },
        portfolio={
            str(horizon): _by_level(found.portfolio_quantiles(equal_11N, QUANTILES, horizon)[0, 0].tolist())
            for horizon in RETURN_HORIZONS
        },
        checkpoint=named.name,
        data_version=panel.manifest["data_version"],
        scored="Forecasts of this checkpoint were not scored in this home." if card is None else in_words(card),
    )


def _by_horizon(row: list[float]) -> dict[str, float]:
    return {str(horizon): value for horizon, value in zip(HORIZONS, row, strict=True)}


def _by_level(row: list[float]) -> dict[str, Any]:
    return {f"{level:g}": value for level, value in zip(QUANTILES, row, strict=True)}
