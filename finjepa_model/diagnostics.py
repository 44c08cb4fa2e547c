"""Collapse monitors (reference: jepa.md, trap 7), measured on a batch that was not trained on.

Shapes: B dates, S steps, N assets, M = N + 1 tokens, D width, K predicted steps.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.encoder import ContextEncoder
from finjepa_model.observation import MarketBatch, Observation
from finjepa_model.predictor import MarketMemory
from finjepa_model.world_model import FinJEPA, PortfolioPath

# What each of the six ways to collapse is told by. The bounds are those of a model that has learnt nothing at all: a model
# that was only trained too little passes, and its skill says so.
_FAILURES: dict[str, Callable[[Mapping[str, float]], bool]] = {
    "constant latents": lambda v: min(v["latent_std"], v["latent_std_market"]) < 0.02,
    "few dimensions": lambda v: min(v["effective_rank_assets"], v["effective_rank_market"]) < 2.0,
    "slow features only": lambda v: v["slowness"] > 0.995,
    "the predictor copies": lambda v: v["movement"] < 1e-3,
    "actions are ignored": lambda v: abs(v["action_gap"] - 1) < 1e-6,
    "error above the spread of the target": lambda v: v["relative_error"] > 2.0,
}


def effective_rank(samples_ND: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of centred samples (Roy and Vetterli 2007); 1 to D."""
    singular = torch.linalg.svdvals((samples_ND - samples_ND.mean(0)).double())
    share = singular / singular.sum().clamp(min=1e-12)
    return torch.exp(-(share * share.clamp(min=1e-12).log()).sum())


@torch.no_grad()
def monitor(model: FinJEPA, batch: MarketBatch, path: PortfolioPath) -> dict[str, Any]:
    """The six monitors.

    Returns:
        latent_std, latent_std_market: (a) spread of a latent over samples; 0 when constant.
        effective_rank_assets, effective_rank_market: (b) dimensional collapse.
        slowness: (c) correlation of an asset's latent with that of the step before; 1 when nothing but slow features is left.
        movement: (d) mean square from the latent that a prediction starts from / from it to the true one; 0 when it copies.
        copy_skill, mean_skill: 1 - MSE of the prediction / MSE of predicting no change, or the mean latent.
        action_gap: (e) loss of portfolio predictions with actions of other samples / with the true ones; 1 when ignored.
        relative_error: (f) prediction loss / variance of the target.
        rollout_skill_k: 1 - MSE / MSE of no change, k steps ahead of the context.
        collapsed: whether one of the six has failed; collapse: which, in words.
    """
    observation = batch.observation
    tokens_BSMD = model.see(model.encoder, observation)[0]
    assets_BSND, market_BSD = tokens_BSMD[..., :-1, :], tokens_BSMD[..., -1, :]
    predicted_BSMD, memory = model.predict(tokens_BSMD, observation.present_BN)
    present_BSN = observation.present_BN.unsqueeze(1).expand(assets_BSND.shape[:-1])
    before, after = assets_BSND[:, :-1][present_BSN[:, 1:]], assets_BSND[:, 1:][present_BSN[:, 1:]]
    ahead = predicted_BSMD[:, :-1, :-1][present_BSN[:, 1:]]
    error, change, spread = F.mse_loss(ahead, after), F.mse_loss(before, after), after.var(0).mean()
    values = {
        "latent_std": spread.sqrt(),
        "latent_std_market": market_BSD.flatten(0, 1).var(0).mean().sqrt(),
        "effective_rank_assets": effective_rank(after),
        "effective_rank_market": effective_rank(market_BSD.flatten(0, 1)),
        "slowness": 1 - change / (2 * spread).clamp(min=1e-12),
        "movement": F.mse_loss(ahead, before) / change.clamp(min=1e-12),
        "copy_skill": 1 - error / change.clamp(min=1e-12),
        "mean_skill": 1 - error / spread.clamp(min=1e-12),
        "action_gap": _action_gap(model, assets_BSND, observation.present_BN, memory, path),
        "relative_error": error / spread.clamp(min=1e-12),
    }
    steps = path.holdings_BKN.shape[1] - 1
    for k, skill in enumerate(rollout_skill(model, observation, steps), start=1):
        values[f"rollout_skill_{k}"] = skill
    numbers = {name: float(value) for name, value in values.items()}
    failed = failures(numbers)
    return numbers | {"collapsed": bool(failed), "collapse": ", ".join(failed) or "none"}


def failures(values: Mapping[str, float]) -> list[str]:
    """Which of the six monitors speak of a collapse; a value that is not a number does."""
    broken = any(value != value for value in values.values())
    return [name for name, failed in _FAILURES.items() if broken or failed(values)]


@torch.no_grad()
def rollout_skill(
    model: FinJEPA, observation: Observation, steps: int, encoder: ContextEncoder | None = None
) -> Tensor:
    """1 - MSE of the roll-out / MSE of no change since the end of the context, of assets and market, at each of K steps.

    Args:
        encoder: what is true is what this one sees, such as the teacher; by default the one that sees the context.
    """
    tokens_BSMD = model.see(model.encoder, observation)[0]
    ahead_BKMD = model.rollout(tokens_BSMD[:, :-steps], observation.present_BN, steps)
    if encoder is not None:
        tokens_BSMD = model.see(encoder, observation)[0]
    last_B1MD, truth_BKMD = tokens_BSMD[:, -steps - 1 : -steps], tokens_BSMD[:, -steps:]
    present_BM = F.pad(observation.present_BN, (0, 1), value=True)

    def error(guess_BKMD: Tensor) -> Tensor:
        return ((guess_BKMD - truth_BKMD).square().mean(-1) * present_BM.unsqueeze(1)).sum((0, 2))

    return 1 - error(ahead_BKMD) / error(last_B1MD).clamp(min=1e-12)


def _action_gap(
    model: FinJEPA, assets_BSND: Tensor, present_BN: Tensor, memory: MarketMemory, path: PortfolioPath
) -> Tensor:
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
