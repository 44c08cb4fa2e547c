"""Goals from data: on training dates, portfolios are drawn and held through what really came, and the best are remembered.

Shapes: B decision dates, L training dates, C portfolios on each, Y = L x C, N assets, T sessions, D latent width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finjepa_model.data.batches import PAST, BatchSource
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.goals import RISK_AVERSION
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.training.behaviour import random_action
from finjepa_model.world_model import WorldModel


@dataclass(frozen=True)
class GoalLibrary:
    """What went best on training dates, by market."""

    markets_LD: Tensor  # market latents of the dates
    goals_LD: Tensor  # mean portfolio latents of the best portfolios there
    known_L: Tensor  # int64, the session at whose close it was known what had gone best

    def nearest(self, market_BD: Tensor, session: int, dates: int = 16) -> Tensor:
        """goal_BD: mean of the dates known by a session whose market was most like this one, in standardised latents.

        Raises:
            FinJEPAError: if nothing was known by then.
        """
        known_L = self.known_L <= session
        if not known_L.any():
            raise FinJEPAError("no training date lies before this decision, so nothing is known of what went best")
        markets_LD = self.markets_LD[known_L]
        scale_D = markets_LD.std(0, correction=0).clamp(min=1e-6)
        distance_BL = torch.cdist(market_BD / scale_D, markets_LD / scale_D)
        nearest_BK = distance_BL.topk(min(dates, len(markets_LD)), largest=False).indices
        return self.goals_LD[known_L][nearest_BK].mean(1)


@torch.no_grad()
def build_library(
    model: WorldModel, panel: Panel, block: tuple[int, int], dates: int = 128, portfolios: int = 64
) -> GoalLibrary:
    """Hold random portfolios for one decision step from dates of the training block, by the exact mechanics.

    The realised utility is the log growth of wealth after costs less `RISK_AVERSION` / 2 times the sum of the squared
    returns of its sessions. A goal is the mean latent of the best tenth, in the market that they ended in.
    """
    config = replace(model.config, training=replace(model.config.training, batch_size=dates))
    source = BatchSource(panel, config, block, past=PAST)
    sessions_L, assets_LN = source.sampler.batch(0)
    batch = source.batch(sessions_L, assets_LN)
    steps, stride = config.loss.rollout_steps, config.model.stride
    now, after = (model.imagine(batch.observation.step(-1 - k, stride), 1) for k in (steps, steps - 1))
    rows_Y = torch.arange(dates).repeat_interleave(portfolios)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        action = random_action(now.present_BN[rows_Y], None, config.portfolio)
    simulator = PortfolioSimulator(config.portfolio)
    state, ledgers = simulator.step(
        simulator.start(tuple(action.weights_XN.shape), dtype=torch.float32),
        action,
        batch.returns_BKTN[rows_Y, 1],
        batch.market_returns_BKT[rows_Y, 1],
        now.beta_BN[rows_Y],
        batch.tradable_BKTN[rows_Y, 1],
    )
    gains_TY = torch.stack([ledger.pnl_X - ledger.cost_X for ledger in ledgers])
    utility_Y = state.wealth_X.log() - RISK_AVERSION / 2 * gains_TY.square().sum(0)
    by_date = (dates, portfolios, -1)
    volatility_LC = after.volatility(
        state.holdings_XN.view(by_date), (state.hedge_X / state.wealth_X).view(dates, portfolios)
    )
    latents_LCD = after.encode_portfolio(
        state.holdings_XN.view(by_date), state.scalars(after.beta_BN[rows_Y], volatility_LC.flatten()).view(by_date)
    )
    goals_LD = best_realised(latents_LCD, utility_Y.view(dates, portfolios))
    return GoalLibrary(now.tokens_BMD[:, -1], goals_LD, torch.from_numpy(sessions_L) + stride)


def best_realised(latents_BKD: Tensor, utility_BK: Tensor, share: float = 0.1) -> Tensor:
    """Mean latent of the portfolios of the best realised utilities on each date: goal_BD."""
    best = utility_BK.topk(max(1, round(share * utility_BK.shape[1])), dim=1).indices
    return latents_BKD.gather(1, best.unsqueeze(-1).expand(-1, -1, latents_BKD.shape[-1])).mean(1)
