"""Controls: a planner with one part of its world model replaced, so that it shows whether a result comes from the planner,
from the data, from the risk model or from what was learned.

`untrained` is the same model as it is born: fixed HAR volatility, textbook correlations, and the mean return of the training
block. `ewma` and `ledoit_wolf` keep the model's expected returns and replace its risk: one factor with exponentially weighted
volatilities, or the covariance of Ledoit and Wolf (2004) of the past year. `shuffled_actions` takes the model's own decision and
deals the weights to other assets.

Shapes: B decision dates, H steps of a plan, N assets, M = N + 1 (the market proxy last), T sessions.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finjepa_model import FinJEPA
from finjepa_model.actions import PortfolioAction
from finjepa_model.config import FinJEPAConfig
from finjepa_model.market_view import MarketView
from finjepa_model.nn.covariance import ledoit_wolf
from finjepa_model.planner_strategies import HORIZON, WITH_UTILITY, FinJEPAStrategy, MarketImagination, planner_of
from finjepa_model.planning.imagination import one_factor_covariance
from finjepa_model.planning.objective import GOAL
from finjepa_model.planning.utility import parse_utility
from finjepa_model.portfolio import PortfolioSimulator, PortfolioState
from finjepa_pipeline.backtest.strategies import control_of

_WITH_LATENTS = ("untrained", "shuffled_actions")
_RISK_SPAN, _YEAR = 63, 252  # sessions


@dataclass(frozen=True)
class ForecastMarket:
    """A market of which only the moments are imagined, without latents (`finjepa_model.planning.imagination.ImaginedMarket`)."""

    mean_BHN: Tensor
    covariance_BHMM: Tensor
    beta_BN: Tensor
    present_BN: Tensor

    def portfolio_path(self, *_: Any, **__: Any) -> Tensor:
        raise NotImplementedError("a forecast has no latents to move a portfolio in")

    encode_portfolio = position = portfolio_path


class OtherRisk:
    """Takes the place of `MarketImagination`: its expected returns, and the risk of another model, covariance_BHMM by view and
    sessions of a step."""

    def __init__(self, imagination: MarketImagination, covariance: Callable[[MarketView, int], Tensor]):
        self.config = imagination.config
        self.simulator = PortfolioSimulator(self.config.portfolio)
        self._imagination, self._covariance = imagination, covariance

    def at(self, view: MarketView) -> ForecastMarket:
        covariance_BHMM = self._covariance(view, self.config.model.stride)
        beta_BN, present_BN = _float(view.beta_N)[None], torch.from_numpy(view.present_N)[None]
        return ForecastMarket(self._imagination.at(view).mean_BHN, covariance_BHMM, beta_BN, present_BN)


def one_factor(view: MarketView, stride: int) -> Tensor:
    """covariance_BHMM by trailing betas and exponentially weighted volatilities."""
    returns_TN, returns_T1 = view.returns(4 * _RISK_SPAN)[0], view.market_returns(4 * _RISK_SPAN)[:, None]
    volatility_BHN, market_BH1 = (_ahead(ewma_volatility(x) * np.sqrt(stride)) for x in (returns_TN, returns_T1))
    return one_factor_covariance(volatility_BHN, market_BH1[..., 0], _float(view.beta_N)[None])


def shrunk_sample(view: MarketView, stride: int) -> Tensor:
    """covariance_BHMM of the returns of the past year, shrunk to a multiple of the identity."""
    returns_TN, market_T = view.returns(_YEAR)[0], view.market_returns(_YEAR)
    returns_TM = np.column_stack([returns_TN[-len(market_T) :], market_T])
    return _ahead(stride * ledoit_wolf(torch.from_numpy(returns_TM - returns_TM.mean(0))).numpy())


def _ahead(x: np.ndarray) -> Tensor:
    """The same for every decision step, of one date."""
    return _float(np.stack([x] * HORIZON))[None]


def ewma_volatility(returns_TN: np.ndarray) -> np.ndarray:
    """Daily volatility_N, exponentially weighted, span 63."""
    weights_T = (1 - 2 / (_RISK_SPAN + 1)) ** np.arange(len(returns_TN) - 1, -1, -1)
    weights_T /= weights_T.sum()
    centred_TN = returns_TN - weights_T @ returns_TN
    return np.maximum(np.sqrt(weights_T @ centred_TN**2), 1e-4)


class ShuffledActions:
    """The model's own plan with the weights and signals dealt to other present assets at random, anew when others are present: as
    concentrated, as expensive, and blind. The planner sees what it would hold itself, so that it does not trade back."""

    def __init__(self, imagination: MarketImagination, planner: str, name: str = "shuffled_actions"):
        self.name = name
        self._planned = FinJEPAStrategy(planner, imagination)
        self._random = np.random.default_rng(imagination.config.training.seed)
        self._dealt: tuple[tuple[str, ...], bytes] | None = None

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction | None:
        if self._dealt != (view.assets, view.present_N.tobytes()):
            self._dealt = view.assets, view.present_N.tobytes()
            deal_N, present = np.arange(len(view.present_N)), np.flatnonzero(view.present_N)
            deal_N[present] = self._random.permutation(present)
            self._order_N = torch.from_numpy(deal_N)
        back_N = self._order_N.argsort()
        own = replace(
            state,
            positions_XN=state.positions_XN[:, back_N],
            signals_XN=state.signals_XN[:, back_N],
            orders_XN=None if state.orders_XN is None else state.orders_XN[:, back_N],
        )
        action = self._planned.decide(view, own)
        if action is None:
            return None
        return PortfolioAction(action.weights_XN[:, self._order_N], action.signals_XN[:, self._order_N], action.hedge_X)


class Controls:
    """Makes controls for one checkpoint."""

    def __init__(self, imagination: MarketImagination):
        self.imagination, self._config = imagination, imagination.config

    def make(self, strategy: str) -> Any:
        """A new strategy by its name, of a control and a planner."""
        found = control_of(strategy)
        assert found is not None
        control, planner = found
        if control == "shuffled_actions":
            return ShuffledActions(self.imagination, planner, strategy)
        if control == "untrained":
            return FinJEPAStrategy(planner, self._untrained, strategy)
        risk = OtherRisk(self.imagination, shrunk_sample if control == "ledoit_wolf" else one_factor)
        return FinJEPAStrategy(planner, risk, strategy)

    @cached_property
    def _untrained(self) -> MarketImagination:
        model = untrained(self._config)
        trained = self.imagination.model.readout
        model.readout.set(torch.zeros_like(trained.weights_Z), float(trained.level), float(trained.persistence))
        model.td = self.imagination.model.td  # a branch that has learned nothing has no tasks
        return MarketImagination(model)


def possible(control: str, planner: str) -> bool:
    """Whether a planner can plan with the control in place: one that looks at latents needs a world model."""
    utility = planner.partition(WITH_UTILITY)[2]
    names = parse_utility(utility).names if utility else GOAL.names if planner in ("cem", "td") else ()
    blind = planner_of(planner) != "td" and not any(
        name.startswith(("goal", "final_goal", "disagreement")) for name in names
    )
    return blind or control in _WITH_LATENTS


def untrained(config: FinJEPAConfig) -> FinJEPA:
    """A world model as it is born."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        return FinJEPA(config).eval()


def _float(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array, np.float32))
