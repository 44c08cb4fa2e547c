"""The behaviour policy: random actions on real market paths, so that coverage of the action space is free (jepa.md, trap 3).

Shapes: B dates, K decision steps, T sessions, N assets.
"""

from dataclasses import replace

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.data.batches import MarketBatch
from finjepa_model.nn.distributed import draw_rows
from finjepa_model.portfolio import PortfolioSimulator, PortfolioState, one_factor_volatility
from finjepa_model.world_model import PortfolioPath

_KEEP = 0.3  # share of decisions that repeat the last weights or signals, as a real portfolio mostly does
_MAX_DRAWDOWN = 0.2  # portfolios begin up to this far below their peak


def random_action(present_BN: Tensor, last: PortfolioAction | None, config: PortfolioConfig) -> PortfolioAction:
    """Dirichlet weights of random concentration, random signals, a hedge that is switched by a coin; some of it is kept."""
    rows, assets = present_BN.shape

    def uniform(*shape: int) -> Tensor:
        return draw_rows(torch.rand, rows, *shape, device=present_BN.device)

    # -log of a uniform number is a Gamma(1) variate; its power spreads from equal weights to a single asset
    power_B1 = 3 * uniform(1)
    raw_BN = uniform(assets).clamp(min=1e-9).log().neg().clamp(min=1e-6) ** power_B1 * present_BN
    weights_BN = raw_BN / raw_BN.sum(-1, keepdim=True)
    low = -1 if config.allow_short else 0
    signals_BN = (low + (2 - low) * uniform(assets)).floor().clamp(max=1)
    # half of the portfolios are fully invested, which is where planners mostly search
    invested_B1 = uniform(1) < 0.5
    signals_BN = torch.where(invested_B1, 1.0, signals_BN) * present_BN
    hedge_B = (uniform() < 0.5).float() * config.allow_hedge
    if last is None:
        return PortfolioAction(weights_BN, signals_BN, hedge_B)
    keep_weights, keep_signals, keep_hedge = (uniform(3, 1) < _KEEP).unbind(1)
    return PortfolioAction(
        torch.where(keep_weights, last.weights_XN, weights_BN),
        torch.where(keep_signals, last.signals_XN, signals_BN),
        torch.where(keep_hedge.squeeze(-1), last.hedge_X, hedge_B),
    )


def random_drawdown(state: PortfolioState) -> PortfolioState:
    """The portfolios, each somewhat below its peak."""
    drawdown_B = draw_rows(torch.rand, len(state.peak_X), device=state.peak_X.device) * _MAX_DRAWDOWN
    return replace(state, peak_X=state.peak_X / (1 - drawdown_B))


@torch.no_grad()
def sample_path(batch: MarketBatch, config: PortfolioConfig) -> PortfolioPath:
    """Hold a random portfolio through the batch by the exact mechanics; the step before the first one only warms it up."""
    simulator = PortfolioSimulator(config)
    present_BN = batch.observation.present_BN
    beta_BSN = batch.observation.beta_BSN
    steps = batch.returns_BKTN.shape[1]
    first = beta_BSN.shape[1] - steps
    state = simulator.start(tuple(present_BN.shape), dtype=torch.float32, device=present_BN.device)
    state = random_drawdown(state)

    action: PortfolioAction | None = None
    seen, traded, actions = [], [], []
    for k in range(steps):
        action = random_action(present_BN, action, config)
        # the beta that was known at the decision
        beta_BN, tradable_BTN = beta_BSN[:, max(first + k - 1, 0)], batch.tradable_BKTN[:, k]
        if k > 0:  # the first action leads to the first state that is seen
            zero_B = torch.zeros_like(state.wealth_X)
            begun = replace(state, decided_wealth_X=state.wealth_X, step_cost_X=zero_B, step_turnover_X=zero_B)
            after, _ = simulator.trade(begun, action, beta_BN, tradable_BTN[:, 0])
            traded.append((after.holdings_XN, _scalars(after, batch, max(first + k - 1, 0))))
            actions.append(action)
        state, _ = simulator.step(
            state, action, batch.returns_BKTN[:, k], batch.market_returns_BKT[:, k], beta_BN, tradable_BTN
        )
        seen.append((state.holdings_XN, _scalars(state, batch, first + k)))
    holdings_BKN, scalars_BKG = (torch.stack(part, dim=1) for part in zip(*seen, strict=True))
    traded_BKN, traded_scalars_BKG = (torch.stack(part, dim=1) for part in zip(*traded, strict=True))
    taken = zip(*(vars(a).values() for a in actions), strict=True)
    action = PortfolioAction(*(torch.stack(part, dim=1) for part in taken))
    return PortfolioPath(holdings_BKN, scalars_BKG, action, traded_BKN, traded_scalars_BKG)


def _scalars(state: PortfolioState, batch: MarketBatch, step: int) -> Tensor:
    """With the volatility that the assets' own and their betas give, for the risk model is fitted after all training."""
    seen = batch.observation
    beta_BN = seen.beta_BSN[:, step]
    volatility_B = one_factor_volatility(
        state.holdings_XN,
        state.hedge_X / state.wealth_X,
        beta_BN,
        seen.volatility_BSN[:, step],
        seen.market_volatility_BS[:, step],
    )
    return state.scalars(beta_BN, volatility_B)
