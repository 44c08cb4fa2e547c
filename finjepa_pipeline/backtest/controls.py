"""Model-matched controls: the world model's planner with one part of the world model replaced, so that it shows whether a result
comes from the planner, from the representation, or from the data.

`ewma` replaces the whole model by exponentially weighted moments; `ridge` and `boosted_trees` forecast from the same
windows and labels that the model was trained on; `trained_probe` and `untrained_probe` are a ridge on the latents of the
model and of a random one; `shuffled_actions` takes the model's own decision and deals the weights to other assets.

Shapes: B decision dates, S steps, H steps of a plan, N assets, T sessions, F channels, P patches, X samples, Z inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.batches import BatchSource, Observation
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import training_block
from finjepa_model.errors import FinJEPAError
from finjepa_model.market_view import MarketView
from finjepa_model.planner_strategies import HORIZON, FinJEPAStrategy, MarketImagination
from finjepa_model.planning.imagination import one_factor_covariance
from finjepa_model.portfolio import PortfolioSimulator, PortfolioState
from finjepa_model.world_model import FinJEPA

Forecast = Callable[[MarketView], np.ndarray]  # expected simple return over the next decision step, by asset of a view
FITTED = ("ridge", "boosted_trees", "trained_probe", "untrained_probe")  # on the training block
TO_FIT = f"a control that is fitted ({', '.join(FITTED)}); add --controls ewma"
PLANNER = "mppi"  # all controls are planned by the planner that needs no latents
_MEAN_SPAN, _RISK_SPAN = 252, 63  # sessions
_DRAWS = 12  # training batches that a forecaster is fitted to
_LARGEST_FORECAST = 3.0  # in units of the asset's volatility over a step


@dataclass(frozen=True)
class ForecastMarket:
    """A market of which only the moments are imagined, without latents (`finjepa_model.planning.imagination.ImaginedMarket`)."""

    mean_BHN: Tensor
    covariance_BHMM: Tensor
    beta_BN: Tensor
    present_BN: Tensor

    def portfolio_path(self, *_: Any, **__: Any) -> Tensor:
        raise NotImplementedError("a forecast has no latents to move a portfolio in")

    encode_portfolio = portfolio_path


class ForecastImagination:
    """Takes the place of `MarketImagination`: a forecast of returns, and exponentially weighted risk."""

    def __init__(self, config: FinJEPAConfig, forecast: Forecast):
        self.config = config
        self.simulator = PortfolioSimulator(config.portfolio)
        self._forecast = forecast

    def goal(self, name: str, view: MarketView) -> torch.Tensor:
        raise FinJEPAError(f"a control has no portfolio latents to draw a plan to {name}")

    def at(self, view: MarketView) -> tuple[ForecastMarket, None]:
        """The forecast market of a decision; there is no goal latent."""

        def ahead(x_N: np.ndarray) -> Tensor:
            return _float(np.tile(x_N, (HORIZON, 1)))[None]

        scale, returns_T1 = np.sqrt(self.config.model.stride), view.market_returns(4 * _RISK_SPAN)[:, None]
        volatility_BHN = ahead(ewma_volatility(view.returns(4 * _RISK_SPAN)[0]) * scale)
        market_BH1, beta_BN = ahead(ewma_volatility(returns_T1) * scale), _float(view.beta_N)[None]
        covariance_BHMM = one_factor_covariance(volatility_BHN, market_BH1[..., 0], beta_BN)
        mean_BHN = ahead(self._forecast(view))
        return ForecastMarket(mean_BHN, covariance_BHMM, beta_BN, torch.from_numpy(view.present_N)[None]), None


def ewma_volatility(returns_TN: np.ndarray) -> np.ndarray:
    """Daily volatility_N, exponentially weighted, span 63."""
    weights_T = _weights(len(returns_TN), _RISK_SPAN)
    centred_TN = returns_TN - weights_T @ returns_TN
    return np.maximum(np.sqrt(weights_T @ centred_TN**2), 1e-4)


def _ewma_forecast(config: FinJEPAConfig) -> Forecast:
    """Exponentially weighted mean return over a decision step, span 252."""

    def forecast(view: MarketView) -> np.ndarray:
        returns_TN, _ = view.returns(2 * _MEAN_SPAN)
        return _weights(len(returns_TN), _MEAN_SPAN) @ returns_TN * config.model.stride

    return forecast


class ShuffledActions:
    """The model's own plan with the weights and signals dealt to other present assets at random: as concentrated, as
    expensive, and blind."""

    name = "shuffled_actions"

    def __init__(self, imagination: MarketImagination, planner: str = PLANNER):
        self._planned = FinJEPAStrategy(planner, imagination)
        self._random = np.random.default_rng(imagination.config.training.seed)

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction | None:
        action = self._planned.decide(view, state)
        if action is None:
            return None
        deal_N = np.arange(len(view.present_N))
        present = np.flatnonzero(view.present_N)
        deal_N[present] = self._random.permutation(present)
        order_N = torch.from_numpy(deal_N)
        return PortfolioAction(action.weights_XN[:, order_N], action.signals_XN[:, order_N], action.hedge_X)


class Controls:
    """Makes controls for one checkpoint on one panel; what has to be fitted is fitted once, on the training block alone."""

    def __init__(self, panel: Panel, imagination: MarketImagination):
        self._panel, self.imagination = panel, imagination
        self._config = imagination.config
        self._forecasts: dict[str, Forecast] = {}

    def make(self, name: str) -> Any:
        """A new strategy by its name in `CONTROLS`."""
        if name == "shuffled_actions":
            return ShuffledActions(self.imagination)
        return FinJEPAStrategy(PLANNER, ForecastImagination(self._config, self.forecast(name)), name)

    def forecast(self, name: str) -> Forecast:
        if name not in self._forecasts:
            self._forecasts[name] = _ewma_forecast(self._config) if name == "ewma" else self._fitted(name)
        return self._forecasts[name]

    def _fitted(self, name: str) -> Forecast:
        inputs = self._inputs(name)
        regressor = _regressor(name)
        samples = [inputs(observation)[valid] for observation, _, valid in self._training]
        targets = [target[valid] for _, target, valid in self._training]
        regressor.fit(np.concatenate(samples), np.clip(np.concatenate(targets), -5, 5))

        def forecast(view: MarketView) -> np.ndarray:
            observation = view.observation(self._config)
            inputs_NZ = inputs(observation)[0, -1]
            scale_N = observation.volatility_BSN[0, -1].numpy() * np.sqrt(self._config.model.stride)
            return np.clip(regressor.predict(inputs_NZ), -_LARGEST_FORECAST, _LARGEST_FORECAST) * scale_N

        return forecast

    def _inputs(self, name: str) -> Callable[[Observation], np.ndarray]:
        """What a forecaster sees of an observation: inputs_BSNZ."""
        if name not in ("trained_probe", "untrained_probe"):
            return lambda observation: patch_means(observation, self._config.model.patch)
        model = self.imagination.model if name == "trained_probe" else untrained(self._config)

        @torch.no_grad()
        def latents(observation: Observation) -> np.ndarray:
            assets_BSND, market_BSD = model.encode(observation)
            return torch.cat([assets_BSND, market_BSD.unsqueeze(2).expand_as(assets_BSND)], -1).numpy()

        return latents

    @cached_property
    def _training(self) -> Sequence[tuple[Observation, np.ndarray, np.ndarray]]:
        """Batches of the training block as the model saw them: observation, target_BSN in units of volatility, valid_BSN."""
        block = training_block(self.imagination.folder, self._panel, self._config, TO_FIT)
        source = BatchSource(self._panel, self._config, block)
        drawn = []
        for step in range(_DRAWS):
            batch = source.draw(step)
            scale_BSN = batch.observation.volatility_BSN * self._config.model.stride**0.5
            valid_BSN = batch.step_return_valid_BSN & batch.observation.present_BN.unsqueeze(1)
            drawn.append((batch.observation, (batch.step_return_BSN / scale_BSN).numpy(), valid_BSN.numpy()))
        return drawn


def untrained(config: FinJEPAConfig) -> FinJEPA:
    """A world model as it is born."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        return FinJEPA(config).eval()


def patch_means(observation: Observation, patch: int) -> np.ndarray:
    """The window of each asset, averaged over the encoder's patches: [B, S, N, P * F]."""
    features_BSNTF = observation.features_BSNTF
    *batch, sessions, channels = features_BSNTF.shape
    means = features_BSNTF.reshape(*batch, sessions // patch, patch, channels).mean(-2)
    return means.reshape(*batch, -1).numpy()


def _regressor(name: str) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if name == "boosted_trees":
        return HistGradientBoostingRegressor(
            max_iter=60, max_depth=3, learning_rate=0.05, min_samples_leaf=200, random_state=0
        )
    return make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(1, 6, 11)))


def _weights(sessions: int, span: int) -> np.ndarray:
    weights_T = (1 - 2 / (span + 1)) ** np.arange(sessions - 1, -1, -1)
    return weights_T / weights_T.sum()


def _float(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array, np.float32))
