"""What a live record keeps of the forecasts at one close: of the model and, made at the same time, of textbook baselines.

Shapes: N assets, C portfolios; a leading 1 is the batch of one date.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import polars as pl
import torch
from torch import Tensor

from finjepa_model.data.batches import observe
from finjepa_model.data.panel import Panel
from finjepa_model.live_record.chain import FORECASTS, HORIZONS, LEVELS, MODEL, QUANTILES, VOLATILITIES
from finjepa_model.nn.covariance import minimum_variance
from finjepa_model.nn.risk import RiskForecast
from finjepa_model.training.risk_fit import Chunk, random_portfolios
from finjepa_model.training.textbook import (
    Distribution,
    analytic_distribution,
    ewma_distribution,
    har_volatility,
    history_distribution,
)
from finjepa_model.world_model import WorldModel

AT_ONCE = 500  # assets outside the universe that are forecast together
RANDOM_PORTFOLIOS = 10


class Forecaster:
    """The model and the baselines at the close of one session.

    Args:
        universe_N: int64, the panel's numbers of the assets that are traded.
        har_JV: weights of HAR as `fit_har` finds them; None for no HAR.
    """

    def __init__(self, model: WorldModel, panel: Panel, session: int, universe_N: np.ndarray, har_JV: Tensor | None):
        self.model, self.panel, self.session, self.universe_N = model, panel, session, universe_N
        self._by_name: dict[str, Distribution] = {
            MODEL: lambda chunk: model.forecast_risk(chunk.observation),
            "20-day history": history_distribution,
            "EWMA": ewma_distribution,
        }
        if har_JV is not None:
            self._by_name["HAR"] = partial(analytic_distribution, volatility=har_volatility(har_JV))
        self._of_universe = self._forecasts(universe_N)

    def _forecasts(self, assets_N: np.ndarray) -> dict[str, RiskForecast]:
        sessions = np.array([self.session])
        seen = observe(self.panel, sessions, assets_N[None], 1, self.model.config)
        chunk = Chunk(sessions, assets_N[None], seen, torch.zeros(1, len(assets_N), 0))  # nothing that comes after
        with torch.no_grad():
            return {name: forecast(chunk) for name, forecast in self._by_name.items()}

    def textbook_portfolios(self) -> dict[str, np.ndarray]:
        """weights_N over the universe: 1/N, the minimum variance of the model's covariance over 21 sessions (long-only), and ten
        random ones, five of them with short positions, that are the same every night while the universe has as many assets."""
        count = len(self.universe_N)
        least_N = minimum_variance(self._of_universe[MODEL].covariance().double(), long_only=True)[0]
        random_CN = random_portfolios(count, RANDOM_PORTFOLIOS, torch.Generator().manual_seed(0))
        found = {"1/N": np.full(count, 1 / count), "minimum variance": least_N.numpy()}
        return found | {f"random {c + 1}": weights_N.numpy() for c, weights_N in enumerate(random_CN)}

    def table(self, portfolios: Mapping[str, np.ndarray], others_N: np.ndarray) -> pl.DataFrame:
        """See `finjepa_model.live_record.chain.FORECASTS`.

        Args:
            portfolios: weights_N over the universe.
            others_N: assets outside the universe, of which volatilities alone are kept.
        """
        mean_N = self._expected_return()
        weights_1CN = torch.from_numpy(np.stack(list(portfolios.values()))).float()[None]
        parts = []
        for name, forecast in self._of_universe.items():
            expected_N = mean_N if name == MODEL else np.zeros(len(mean_N))  # baselines are normal around 0
            assets = [self.panel.assets[asset] for asset in self.universe_N]
            volatilities = [forecast.return_volatility(horizon)[0] for horizon in HORIZONS]
            quantiles = [forecast.quantiles(LEVELS, horizon)[0] for horizon in HORIZONS]
            parts.append(_part(name, "asset", assets, volatilities, quantiles, expected_N))
            volatilities = [forecast.portfolio_volatility(weights_1CN, horizon)[0] for horizon in HORIZONS]
            quantiles = [forecast.portfolio_quantiles(weights_1CN, LEVELS, horizon)[0] for horizon in HORIZONS]
            expected_C = weights_1CN[0].double().numpy() @ expected_N
            parts.append(_part(name, "portfolio", list(portfolios), volatilities, quantiles, expected_C))
            units = [forecast.unit_quantiles(LEVELS, horizon)[None] for horizon in HORIZONS]
            parts.append(_part(name, "unit", ["unit"], [torch.ones(1)] * len(HORIZONS), units))
        return pl.concat([*parts, *self._of_others(others_N)])

    def _of_others(self, others_N: np.ndarray) -> Iterator[pl.DataFrame]:
        for start in range(0, len(others_N), AT_ONCE):
            part_N = others_N[start : start + AT_ONCE]
            names = [self.panel.assets[asset] for asset in part_N]
            for name, forecast in self._forecasts(part_N).items():
                yield _part(name, "market", names, [forecast.return_volatility(horizon)[0] for horizon in HORIZONS])

    def _expected_return(self) -> np.ndarray:
        """A day, over the next decision step, [N]."""
        seen = observe(self.panel, np.array([self.session]), self.universe_N[None], 1, self.model.config)
        with torch.no_grad():
            mean_BHN = self.model.expected_returns(seen, self.model.encode(seen)[0][:, -1], 1)
        return (mean_BHN[0, 0] / self.model.config.model.stride).double().numpy()


def _part(
    forecast: str,
    kind: str,
    names: list[str],
    volatilities: list[Tensor],
    quantiles: list[Tensor] | None = None,
    expected_N: np.ndarray | None = None,
) -> pl.DataFrame:
    columns = {"forecast": [forecast] * len(names), "kind": [kind] * len(names), "name": names}
    columns |= {name: values_N.numpy() for name, values_N in zip(VOLATILITIES, volatilities, strict=True)}
    for horizon, values_NQ in zip(HORIZONS, quantiles or [], strict=quantiles is not None):
        columns |= dict(zip(QUANTILES[horizon], values_NQ.T.numpy(), strict=True))
    if expected_N is not None:
        columns["expected_return"] = expected_N
    frame = pl.DataFrame(columns)
    missing = [pl.lit(None).alias(name) for name in FORECASTS if name not in frame.columns]
    return frame.with_columns(missing).select(*FORECASTS).cast(pl.Schema(FORECASTS))
