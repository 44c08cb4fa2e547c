"""The rules that every model has to stand beside, from skfolio wherever it has them.

All are judged with the universe, lag, costs and dates of the planners. What is fitted is fitted once a month on trailing
returns, and left to drift in between.

Shapes: N assets of the view, T sessions, V assets whose window has no gap.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from finjepa_model.actions import PortfolioAction
from finjepa_model.portfolio import PortfolioState
from finjepa_pipeline.backtest.market_view import MarketView
from finjepa_pipeline.backtest.strategies import (
    BuyAndHold,
    Cash,
    EqualWeight,
    Strategy,
    equal_weights,
    long_only,
)

WINDOWS = (504, 252, 126, 63)  # sessions; the longest in which enough assets have no gap
Rule = Callable[[MarketView], np.ndarray]


class Monthly:
    """Trades to the weights of a rule at the first decision of a month and when the universe is chosen anew; no orders in
    between. Weights need not be normalised; where the rule knows nothing (all zero), 1/N."""

    def __init__(self, name: str, rule: Rule):
        self.name = name
        self._rule = rule
        self._done: tuple[Any, ...] = ()

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction | None:
        period = view.date.astype("datetime64[M]"), view.assets
        if period == self._done:
            return None
        self._done = period
        return _held(self._rule(view), view)


class EveryDecision:
    """Trades to the weights of a rule at every decision."""

    def __init__(self, name: str, rule: Rule):
        self.name = name
        self._rule = rule

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction:
        return _held(self._rule(view), view)


def _held(weights_N: np.ndarray, view: MarketView) -> PortfolioAction:
    return long_only(weights_N if weights_N.sum() > 0 else equal_weights(view.present_N))


def baselines() -> list[Strategy]:
    """The strategies that need no model, new ones for a new walk."""
    return [
        EqualWeight(),
        BuyAndHold(),
        Cash(),
        Monthly("equal_weight_monthly", lambda view: equal_weights(view.present_N)),
        Monthly("cap_proxy", _dollar_volume),
        Monthly("inverse_volatility", _fitted("InverseVolatility")),
        Monthly("min_variance", _fitted("MeanRisk", covariance="LedoitWolf")),
        Monthly("max_sharpe", _fitted("MeanRisk", covariance="LedoitWolf", mean="ShrunkMu")),
        Monthly("hierarchical_risk_parity", _fitted("HierarchicalRiskParity")),
        Monthly("risk_parity", _fitted("RiskBudgeting")),
        Monthly("max_diversification", _fitted("MaximumDiversification")),
        Monthly("momentum_60", lambda view: extreme_quintile(view, 60)),
        Monthly("momentum_252_21", lambda view: extreme_quintile(view, 252, skip=21)),
        EveryDecision("reversal_5", lambda view: extreme_quintile(view, 5, losers=True)),
        Monthly("random_simplex", _random_simplex),
    ]


def rival_names() -> list[str]:
    """Whoever is judged beside planners and never chosen as a champion; strategies of the user have a colon in their name."""
    from finjepa_pipeline.backtest.controls import CONTROLS

    return [strategy.name for strategy in baselines()] + list(CONTROLS)


def kind(strategy: str) -> str:
    """`planner`, `baseline`, `control` or `user`, by the name of a strategy."""
    from finjepa_pipeline.backtest.controls import CONTROLS

    if ":" in strategy:
        return "user"
    if strategy in CONTROLS:
        return "control"
    return "baseline" if strategy in {s.name for s in baselines()} else "planner"


def extreme_quintile(view: MarketView, sessions: int, skip: int = 0, losers: bool = False) -> np.ndarray:
    """Equal weights on the fifth of the present assets that rose most (or fell most) over `sessions` sessions, of which the
    last `skip` are left out."""
    returns_TN, _ = view.returns(sessions)
    growth_N = np.log1p(returns_TN[: sessions - skip]).sum(0) * (-1 if losers else 1)
    growth_N = np.where(view.present_N, growth_N, -np.inf)
    count = max(1, round(int(view.present_N.sum()) / 5))
    weights_N = np.zeros(len(growth_N))
    weights_N[np.argsort(-growth_N, kind="stable")[:count]] = 1.0
    return weights_N * view.present_N


def _dollar_volume(view: MarketView) -> np.ndarray:
    """Trailing mean dollar volume stands in for capitalisation, which prices do not tell; nothing is known without volumes."""
    liquidity = view.liquidity()
    if liquidity is None:
        return np.zeros(len(view.present_N))
    return np.nan_to_num(liquidity.dollar_volume_XN[0].numpy()) * view.present_N


def _random_simplex(view: MarketView) -> np.ndarray:
    """Uniform on the simplex, drawn by the date so that a walk can be repeated."""
    random = np.random.default_rng(int(view.date.astype(np.int64)))
    return random.exponential(size=len(view.present_N)) * view.present_N


def _fitted(estimator: str, **parts: str) -> Rule:
    def weights(view: MarketView) -> np.ndarray:
        returns_TV, complete_N = complete_returns(view)
        weights_N = np.zeros(len(complete_N))
        if returns_TV.shape[1] == 1:
            weights_N[complete_N] = 1.0
        elif returns_TV.shape[1] > 1:
            weights_N[complete_N] = _fit(estimator, parts, returns_TV)
        return weights_N

    return weights


def _fit(name: str, parts: dict[str, str], returns_TV: np.ndarray) -> np.ndarray:
    from skfolio import moments, optimization, prior

    options: dict[str, Any] = {}
    if "covariance" in parts:
        means = {"mu_estimator": getattr(moments, parts["mean"])()} if "mean" in parts else {}
        options["prior_estimator"] = prior.EmpiricalPrior(
            covariance_estimator=getattr(moments, parts["covariance"])(), **means
        )
    if "mean" in parts:
        options["objective_function"] = optimization.ObjectiveFunction.MAXIMIZE_RATIO
    try:
        weights_V = getattr(optimization, name)(**options).fit(returns_TV).weights_
    except Exception:  # no solution, such as a best ratio where every mean is negative; the caller then takes 1/N
        return np.zeros(returns_TV.shape[1])
    return np.maximum(np.asarray(weights_V), 0.0)


def complete_returns(view: MarketView, windows: Sequence[int] = WINDOWS) -> tuple[np.ndarray, np.ndarray]:
    """Trailing returns of the assets without a gap, since skfolio takes no NaN: returns_TV and which of the N they are.

    The window is the longest in which at least half of the present assets are complete.
    """
    complete_N = np.zeros(len(view.present_N), bool)
    for sessions in windows:
        returns_TN, known_TN = view.returns(sessions)
        complete_N = view.present_N & known_TN.all(0) & (returns_TN.std(0) > 0)
        if complete_N.sum() * 2 >= max(view.present_N.sum(), 1):
            return returns_TN[:, complete_N], complete_N
    return np.zeros((0, 0)), np.zeros_like(complete_N)
