"""Goals from data: on training dates, portfolios are drawn and held through what really came, and the best are remembered.

Shapes: L training dates, C portfolios on each, Y = L x C, N assets, T sessions, D latent width.
"""

from dataclasses import replace

import torch

from finjepa_model.data.batches import BatchSource
from finjepa_model.data.panel import Panel
from finjepa_model.planning.goals import RISK_AVERSION, GoalLibrary, best_realised
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.training.behaviour import random_action
from finjepa_model.world_model import FinJEPA


@torch.no_grad()
def build_library(
    model: FinJEPA, panel: Panel, block: tuple[int, int], dates: int = 128, portfolios: int = 64
) -> GoalLibrary:
    """Hold random portfolios for one decision step from dates of the training block, by the exact mechanics.

    The realised utility is the log growth of wealth after costs less `RISK_AVERSION` / 2 times the sum of the squared
    returns of its sessions. A goal is the mean latent of the best tenth, in the market that they ended in.

    Args:
        block: half-open range of the sessions that the model was trained on.

    Raises:
        FinJEPAError: if the panel is too short for the model's windows.
    """
    config = replace(model.config, training=replace(model.config.training, batch_size=dates))
    source = BatchSource(panel, config, block)
    sessions_L, assets_LN = source.sampler.batch(0)
    batch = source.batch(sessions_L, assets_LN)
    steps, stride = config.loss.rollout_steps, config.model.stride
    now, after = (model.imagine(batch.observation.step(-1 - k), 1) for k in (steps, steps - 1))
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
    latents_LCD = after.encode_portfolio(
        state.holdings_XN.view(by_date),
        state.signals_XN.view(by_date),
        state.scalars(after.beta_BN[rows_Y]).view(by_date),
    )
    goals_LD = best_realised(latents_LCD, utility_Y.view(dates, portfolios))
    return GoalLibrary(now.tokens_BMD[:, -1], goals_LD, torch.from_numpy(sessions_L) + stride)
