"""Collapse monitors (reference: jepa.md, trap 7), measured on a batch that was not trained on.

Shapes: B dates, S steps, N assets, M = N + 1 tokens, D width.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.observation import MarketBatch
from finjepa_model.world_model import FinJEPA, PortfolioPath

_MIN_EFFECTIVE_RANK = 2.0
_MIN_STD = 0.05


def effective_rank(samples_ND: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of centred samples (Roy and Vetterli 2007); 1 to D."""
    singular = torch.linalg.svdvals((samples_ND - samples_ND.mean(0)).double())
    share = singular / singular.sum().clamp(min=1e-12)
    return torch.exp(-(share * share.clamp(min=1e-12).log()).sum())


@torch.no_grad()
def monitor(model: FinJEPA, batch: MarketBatch, path: PortfolioPath) -> dict[str, float | bool]:
    """The six monitors.

    Returns:
        latent_std: (a) spread of a latent over samples; 0 when constant.
        effective_rank_assets, effective_rank_market: (b) dimensional collapse.
        slowness: (c) correlation of an asset's latent with that of the step before; 1 when nothing but slow features is left.
        copy_skill, mean_skill: (d) 1 - MSE of the prediction / MSE of predicting no change, or the mean latent.
        action_gap: (e) loss of portfolio predictions with actions of other samples / with the true ones; 1 when ignored.
        relative_error: (f) prediction loss / variance of the target.
        collapsed: whether (a) or (b) has failed.
    """
    observation = batch.observation
    assets_BSND, market_BSD = model.encode(observation)
    tokens_BSMD = torch.cat([assets_BSND, market_BSD.unsqueeze(-2)], dim=-2)
    predicted_BSMD, memory = model.predict(tokens_BSMD, observation.present_BN)
    present_BSN = observation.present_BN.unsqueeze(1).expand(assets_BSND.shape[:-1])
    before, after = assets_BSND[:, :-1][present_BSN[:, 1:]], assets_BSND[:, 1:][present_BSN[:, 1:]]
    ahead = predicted_BSMD[:, :-1, :-1][present_BSN[:, 1:]]
    error, spread = F.mse_loss(ahead, after), after.var(0).mean()
    ranks = effective_rank(after), effective_rank(market_BSD.flatten(0, 1))
    latent_std = spread.sqrt()
    values = {
        "latent_std": latent_std,
        "effective_rank_assets": ranks[0],
        "effective_rank_market": ranks[1],
        "slowness": 1 - F.mse_loss(before, after) / (2 * spread).clamp(min=1e-12),
        "copy_skill": 1 - error / F.mse_loss(before, after).clamp(min=1e-12),
        "mean_skill": 1 - error / spread.clamp(min=1e-12),
        "action_gap": _action_gap(model, assets_BSND, observation.present_BN, memory, path),
        "relative_error": error / spread.clamp(min=1e-12),
    }
    collapsed = min(ranks).item() < _MIN_EFFECTIVE_RANK or latent_std.item() < _MIN_STD
    return {name: float(value) for name, value in values.items()} | {"collapsed": collapsed}


def _action_gap(model: FinJEPA, assets_BSND: Tensor, present_BN: Tensor, memory, path: PortfolioPath) -> Tensor:
    steps = path.holdings_BKN.shape[1]
    assets_BKND = assets_BSND[:, -steps:]
    present_BKN = present_BN.unsqueeze(1).expand(-1, steps, -1)
    latents_BKD = model.encode_portfolio(
        path.holdings_BKN, path.signals_BKN, path.scalars_BKG, assets_BKND, present_BKN
    )
    first_step = assets_BSND.shape[1] - steps

    def error(actions: PortfolioAction) -> Tensor:
        condition_BKD = model.action_embedder(
            actions, path.holdings_BKN[:, :-1], assets_BKND[:, :-1], present_BKN[:, :-1]
        )
        ahead_B1KD, _ = model.predictor.portfolio(latents_BKD[:, None, :-1], condition_BKD[:, None], first_step, memory)
        return F.mse_loss(ahead_B1KD.squeeze(1), latents_BKD[:, 1:])

    shuffled = path.actions.map(lambda x: x.roll(1, dims=0))
    return error(shuffled) / error(path.actions).clamp(min=1e-12)
