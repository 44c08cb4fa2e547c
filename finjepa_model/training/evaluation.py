"""Whether the latents of a model have collapsed, and how well it predicts them.

Shapes: B dates, S steps, N assets, M = N + 1 tokens, K predicted steps, D width.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from finjepa_model.data.batches import MarketBatch
from finjepa_model.world_model import WorldModel

# The sign of each of five ways to collapse; actions cannot be ignored, since what a trade leads to is part of a prediction. The
# bounds are those of a model that has learnt nothing at all; one that was only trained too little passes, and has a low skill.
_FAILURES: dict[str, Callable[[Mapping[str, float]], bool]] = {
    "constant latents": lambda v: min(v["latent_std"], v["latent_std_market"]) < 0.02,
    "few dimensions": lambda v: min(v["effective_rank_assets"], v["effective_rank_market"]) < 2.0,
    "slow features only": lambda v: v["slowness"] > 0.995,
    "the predictor copies": lambda v: v["movement"] < 1e-3,
    "error above the spread of the target": lambda v: v["relative_error"] > 2.0,
}


def effective_rank(samples_ND: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of centred samples (Roy and Vetterli 2007); 1 to D."""
    singular = torch.linalg.svdvals((samples_ND - samples_ND.mean(0)).double())
    share = singular / singular.sum().clamp(min=1e-12)
    return torch.exp(-(share * share.clamp(min=1e-12).log()).sum())


@torch.no_grad()
def monitor(model: WorldModel, batch: MarketBatch) -> dict[str, Any]:
    """The five monitors.

    Returns:
        latent_std, latent_std_market: (a) spread of a latent over samples; 0 when constant.
        effective_rank_assets, effective_rank_market: (b) dimensional collapse.
        slowness: (c) correlation of an asset's latent with that of the step before; 1 when nothing but slow features is left.
        movement: (d) mean square from the latent that a prediction starts from / from it to the true one; 0 when it copies.
        copy_skill, mean_skill: 1 - MSE of the prediction / MSE of predicting no change, or the mean latent.
        relative_error: (e) prediction loss / variance of the target.
        rollout_skill_k: 1 - MSE / MSE of no change, k steps ahead of the context.
        collapsed: whether one of the five has failed; collapse: which, in words.
    """
    observation = batch.observation
    tokens_BSMD = model.see(model.encoder, observation)[0]
    assets_BSND, market_BSD = tokens_BSMD[..., :-1, :], tokens_BSMD[..., -1, :]
    predicted_BSMD, _ = model.predict(tokens_BSMD, observation.present_BN)
    present_BSN = observation.present_BN.unsqueeze(1).expand(assets_BSND.shape[:-1])
    before, after = assets_BSND[:, :-1][present_BSN[:, 1:]], assets_BSND[:, 1:][present_BSN[:, 1:]]
    ahead = predicted_BSMD[:, :-1, :-1][present_BSN[:, 1:]]
    target = model.see(model.teacher, batch.ahead)[0][:, :, :-1][present_BSN[:, 1:]]
    copied = model.see(model.teacher, observation)[0][:, :-1, :-1][present_BSN[:, 1:]] if model.has_teacher else before
    error, change, spread = F.mse_loss(ahead, target), F.mse_loss(copied, target), target.var(0).mean()
    values = {
        "latent_std": spread.sqrt(),
        "latent_std_market": market_BSD.flatten(0, 1).var(0).mean().sqrt(),
        "effective_rank_assets": effective_rank(after),
        "effective_rank_market": effective_rank(market_BSD.flatten(0, 1)),
        "slowness": 1 - F.mse_loss(before, after) / (2 * after.var(0).mean()).clamp(min=1e-12),
        "movement": F.mse_loss(ahead, before) / change.clamp(min=1e-12),
        "copy_skill": 1 - error / change.clamp(min=1e-12),
        "mean_skill": 1 - error / spread.clamp(min=1e-12),
        "relative_error": error / spread.clamp(min=1e-12),
    }
    for k, skill in enumerate(rollout_skill(model, batch, model.config.loss.rollout_steps), start=1):
        values[f"rollout_skill_{k}"] = skill
    numbers = {name: float(value) for name, value in values.items()}
    failed = failures(numbers)
    return numbers | {"collapsed": bool(failed), "collapse": ", ".join(failed) or "none"}


def failures(values: Mapping[str, float]) -> list[str]:
    """The monitors that report a collapse: all that fail, or every one where a value is not a number."""
    broken = any(value != value for value in values.values())
    return [name for name, failed in _FAILURES.items() if broken or failed(values)]


@torch.no_grad()
def rollout_skill(model: WorldModel, batch: MarketBatch, steps: int) -> Tensor:
    """1 - MSE of the roll-out / MSE of no change since the end of the context, of assets and market, at each of K steps; what is
    true is what the teacher sees in the window that begins after the step before."""
    tokens_BSMD = model.see(model.encoder, batch.observation)[0]
    ahead_BKMD = model.rollout(tokens_BSMD[:, :-steps], batch.observation.present_BN, steps)
    last_B1MD = model.see(model.teacher, batch.observation)[0][:, -steps - 1 : -steps]
    truth_BKMD = model.see(model.teacher, batch.ahead)[0][:, -steps:]
    present_BM = F.pad(batch.observation.present_BN, (0, 1), value=True)

    def error(guess_BKMD: Tensor) -> Tensor:
        return ((guess_BKMD - truth_BKMD).square().mean(-1) * present_BM.unsqueeze(1)).sum((0, 2))

    return 1 - error(ahead_BKMD) / error(last_B1MD).clamp(min=1e-12)
