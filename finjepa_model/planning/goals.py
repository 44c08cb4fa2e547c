"""Goals: states of a portfolio, as latents that a plan is drawn to. Never a path of prices, which no trade can make true.

What is best under the imagined moments, or a state that the user names.

Shapes: B decision dates, N assets, D latent width, G portfolio scalars.
"""

from dataclasses import replace

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.planning.imagination import ImaginedMarket, Moments
from finjepa_model.planning.utility import Target
from finjepa_model.portfolio import SCALARS, PortfolioSimulator

RISK_AVERSION = 5.0
_BISECTIONS = 30


@torch.no_grad()
def goal_latent(
    imagination: ImaginedMarket, simulator: PortfolioSimulator, sessions: int, risk_aversion: float = RISK_AVERSION
) -> Tensor:
    """goal_BD: the mean-variance optimal holdings as they would stand with no costs paid and no drawdown, whatever is held."""
    moments = Moments.of(imagination)
    holdings_BN = moments.best_holdings(risk_aversion, simulator.config.max_weight)
    hedge_B = moments.hedge_pays(holdings_BN, risk_aversion) & simulator.config.allow_hedge
    return _latent(imagination, moments, simulator, sessions, holdings_BN, hedge_B.to(holdings_BN.dtype), {})


@torch.no_grad()
def target_latent(imagination: ImaginedMarket, simulator: PortfolioSimulator, sessions: int, target: Target) -> Tensor:
    """goal_BD: a state that the user names, in the market of now."""
    rules, moments = simulator.config, Moments.of(imagination)
    holdings_BN, hedge_B = target_holdings(moments, rules, sessions, target)
    fixed = {"drawdown": -10 * target.drawdown}
    if target.growth is not None:
        fixed["step_return"] = 10 * target.growth * sessions / rules.sessions_per_year
    return _latent(imagination, moments, simulator, sessions, holdings_BN, hedge_B, fixed)


def target_holdings(moments: Moments, rules: PortfolioConfig, sessions: int, target: Target) -> tuple[Tensor, Tensor]:
    """holdings_BN and hedge_B (0 or 1) of a state that the user names: the best at its volatility, scaled to its exposure."""
    steps_a_year = rules.sessions_per_year / sessions
    aversion_B1 = torch.full_like(moments.mean_BHN[:, 0, :1], RISK_AVERSION)
    if target.volatility is not None:
        aversion_B1 = _aversion_of(moments, target.volatility / steps_a_year**0.5, rules.max_weight)
    holdings_BN = moments.best_holdings(aversion_B1, rules.max_weight)
    scale_B1 = torch.ones_like(aversion_B1)
    if target.exposure is not None:
        scale_B1 = scale_B1 * min(target.exposure, rules.max_gross)
    elif target.volatility is not None:  # even the least volatile holdings may have more: the rest is cash
        scale_B1 = (target.volatility / steps_a_year**0.5 / _volatility(moments, holdings_BN)).clamp(max=1)
    wants_hedge_B = moments.hedge_pays(holdings_BN, RISK_AVERSION)
    if target.hedge is not None:
        wants_hedge_B = torch.full_like(wants_hedge_B, bool(target.hedge))
    return holdings_BN * scale_B1, (wants_hedge_B & rules.allow_hedge).to(holdings_BN.dtype)


def _volatility(moments: Moments, holdings_BN: Tensor) -> Tensor:
    """Of the first step, volatility_B1."""
    return moments.variance(holdings_BN.unsqueeze(1)).clamp(min=1e-16).sqrt()


def _aversion_of(moments: Moments, volatility: float, max_weight: float) -> Tensor:
    """The risk aversion, between 1e-2 and 1e4, whose best holdings have a volatility; it falls as the aversion grows."""
    low_B1 = torch.full_like(moments.mean_BHN[:, 0, :1], -2.0)
    high_B1 = torch.full_like(low_B1, 4.0)
    for _ in range(_BISECTIONS):
        middle_B1 = (low_B1 + high_B1) / 2
        above_B1 = _volatility(moments, moments.best_holdings(10**middle_B1, max_weight)) > volatility
        low_B1, high_B1 = torch.where(above_B1, middle_B1, low_B1), torch.where(above_B1, high_B1, middle_B1)
    return 10**high_B1


def _latent(
    imagination: ImaginedMarket,
    moments: Moments,
    simulator: PortfolioSimulator,
    sessions: int,
    holdings_BN: Tensor,
    hedge_B: Tensor,
    fixed: dict[str, float],
) -> Tensor:
    """Latent of holdings after a step at expected returns, free of costs, with some scalars fixed."""
    # a simulator without costs, in which a budget may be any share of wealth
    free = PortfolioSimulator(
        replace(simulator.config, cost_bps=0.0, hedge_cost_bps=0.0, borrow_rate=0.0, max_gross=1.0)
    )
    signals_BN = (holdings_BN > 0).to(holdings_BN.dtype)
    action = PortfolioAction(holdings_BN, signals_BN, hedge_B)
    start = free.start(tuple(holdings_BN.shape), dtype=holdings_BN.dtype, device=holdings_BN.device)
    state, _ = free.trade(start, action, moments.beta_BN, torch.ones_like(moments.present_BN))
    state, _ = free.drift(state, moments.mean_BHN[:, 0], moments.market_mean_BH[:, 0], sessions)
    state = replace(state, peak_X=state.wealth_X, step_turnover_X=torch.zeros_like(state.wealth_X))
    variance_B1 = moments.variance(state.holdings_XN.unsqueeze(1), (state.hedge_X / state.wealth_X).unsqueeze(1))
    scalars_BG = state.scalars(moments.beta_BN, (variance_B1.squeeze(1).clamp(min=1e-16) / sessions).sqrt()).clone()
    for name, value in fixed.items():
        scalars_BG[:, SCALARS.index(name)] = value
    return imagination.encode_portfolio(state.holdings_XN.unsqueeze(1), scalars_BG.unsqueeze(1))[:, 0]
