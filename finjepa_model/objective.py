"""The training objective: every term, and their weighted sum (design, section 4; reference: jepa.md).

Teacher-forced and K-step autoregressive prediction of target latents (JEPA-WMs, section 3), masked patches (TS-JEPA), what
keeps latents from collapsing (`LossConfig.recipe`), inverse dynamics and variance-covariance on the portfolio latents
(EB-JEPA), and read-outs of detached latents. With several processes each term is this one's share: the average over them is
the term of the global batch.

Shapes: B decision dates, S steps (W context steps, then K that are predicted), N assets, M = N + 1 tokens, Y samples, D width,
G portfolio scalars.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from finjepa_model.distributed import masked_mean
from finjepa_model.encoder import masked_patch_error
from finjepa_model.observation import MarketBatch, Observation
from finjepa_model.predictor import MarketMemory
from finjepa_model.regularizers import variance_covariance

if TYPE_CHECKING:
    from finjepa_model.world_model import FinJEPA, PortfolioPath


def objective(model: "FinJEPA", batch: MarketBatch, path: "PortfolioPath", seed: int) -> dict[str, Tensor]:
    """See `FinJEPA.loss`."""
    weights, observation = model.config.loss, batch.observation
    tokens_BSMD, patches_BSNPD = model.see(model.encoder, observation)
    # Targets carry no gradient in any recipe. Windows of one decision and the next share most of their sessions, so a target
    # that learns drops the newest ones, which alone are hard to predict; and patches that are their own target go constant.
    target_BSMD, target_patches_BSNPD = tokens_BSMD.detach(), patches_BSNPD.detach()
    if model.has_teacher:
        with torch.no_grad():
            target_BSMD, target_patches_BSNPD = model.see(model.target_encoder, observation)

    predicted_BSMD, memory = model.predictor.market(tokens_BSMD, observation.present_BN)
    ahead_BKMD = _roll_out(model, tokens_BSMD, predicted_BSMD, observation)
    masked = masked_patch_error(
        model.encoder,
        model.patch_predictor,
        observation.features_BSNTF[:, -1],
        observation.observed_BSNT[:, -1],
        target_patches_BSNPD[:, -1],
        weights.mask_ratio,
    )
    terms = {
        "prediction": _latent_error(predicted_BSMD[:, :-1], target_BSMD[:, 1:], observation.present_BN),
        "rollout": _latent_error(ahead_BKMD, target_BSMD[:, -weights.rollout_steps :], observation.present_BN),
        "masked_patch": masked_mean(masked, observation.present_BN),
    }
    if weights.recipe in ("sigreg", "both"):
        terms["sigreg"] = _sigreg(model, tokens_BSMD, observation.present_BN, seed)
    if weights.recipe == "vicreg":
        terms |= _vicreg(tokens_BSMD, observation.present_BN)
    terms |= _portfolio_terms(model, tokens_BSMD, memory, observation, path)
    terms["heads"] = _heads(model, tokens_BSMD, predicted_BSMD, batch) + terms.pop("portfolio_head")
    for name in ("prediction", "rollout"):
        terms[name] = terms[name] + terms.pop(f"portfolio_{name}")
    terms["loss"] = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
    return terms


def _roll_out(model: "FinJEPA", tokens_BSMD: Tensor, predicted_BSMD: Tensor, observation: Observation) -> Tensor:
    """K steps ahead of the context. The first of them is the teacher-forced prediction there, so it is not made again."""
    weights = model.config.loss
    context = observation.steps - weights.rollout_steps
    first_B1MD = predicted_BSMD[:, context - 1 : context]
    if weights.rollout_steps == 1:
        return first_B1MD
    fed_B1MD = first_B1MD.detach() if weights.truncate_rollout else first_B1MD
    known = torch.cat([tokens_BSMD[:, :context], fed_B1MD], dim=1)
    rest = model.rollout(known, observation.present_BN, weights.rollout_steps - 1, weights.truncate_rollout)
    return torch.cat([first_B1MD, rest], dim=1)


def _latent_error(predicted_BSMD: Tensor, target_BSMD: Tensor, present_BN: Tensor) -> Tensor:
    """Mean squared error over the tokens of present assets and of the market."""
    error_BSM = (predicted_BSMD.float() - target_BSMD.float()).square().mean(-1)
    return masked_mean(error_BSM, F.pad(present_BN, (0, 1), value=True).unsqueeze(1).expand_as(error_BSM))


def _samples(tokens_BSMD: Tensor, present_BN: Tensor) -> tuple[Tensor, Tensor]:
    """assets_SYD and market_SBD: at each time index, the latents of all dates (and assets)."""
    assets_SYD = tokens_BSMD[..., :-1, :].transpose(1, 2)[present_BN].transpose(0, 1)
    return assets_SYD, tokens_BSMD[..., -1, :].transpose(0, 1)


def _sigreg(model: "FinJEPA", tokens_BSMD: Tensor, present_BN: Tensor, seed: int) -> Tensor:
    """SIGReg at each time index over the batch, of the assets and of the market."""
    assets_SYD, market_SBD = _samples(tokens_BSMD, present_BN)
    return model.sigreg(assets_SYD, seed) + model.sigreg(market_SBD, seed)


def _vicreg(tokens_BSMD: Tensor, present_BN: Tensor) -> dict[str, Tensor]:
    """EB-JEPA's terms on assets and market: variance, covariance, and similarity of one step and the next."""
    pairs = [variance_covariance(samples.flatten(0, 1)) for samples in _samples(tokens_BSMD, present_BN)]
    (of_assets, cov_assets), (of_market, cov_market) = pairs
    return {
        "latent_variance": of_assets + of_market,
        "latent_covariance": cov_assets + cov_market,
        "temporal_similarity": _latent_error(tokens_BSMD[:, 1:], tokens_BSMD[:, :-1], present_BN),
    }


def _portfolio_terms(
    model: "FinJEPA", tokens_BSMD: Tensor, memory: MarketMemory, observation: Observation, path: "PortfolioPath"
) -> dict[str, Tensor]:
    weights = model.config.loss
    steps = weights.rollout_steps
    first_step = observation.steps - 1 - steps
    assets_BKND = tokens_BSMD[:, first_step:, :-1].detach()
    present_BKN = observation.present_BN.unsqueeze(1).expand(-1, steps + 1, -1)
    seen = (path.holdings_BKN, path.signals_BKN, path.scalars_BKG, assets_BKND, present_BKN)
    latents_BKD = model.portfolio_encoder(*seen)
    with torch.no_grad():
        target_BKD = model.target_portfolio_encoder(*seen)
    condition_BKD = model.action_embedder(
        path.actions, path.holdings_BKN[:, :-1], assets_BKND[:, :-1], present_BKN[:, :-1]
    )
    predict = model.predictor.portfolio
    one_ahead_B1KD, _ = predict(latents_BKD[:, None, :-1], condition_BKD[:, None], first_step, memory)
    token_B1D, past, ahead = latents_BKD[:, None, :1], None, []
    for k in range(steps):
        token_B1D, past = predict(token_B1D, condition_BKD[:, None, k : k + 1], first_step + k, memory, past)
        ahead.append(token_B1D[:, 0])
        if weights.truncate_rollout:
            token_B1D = token_B1D.detach()

    variance, covariance = variance_covariance(latents_BKD.flatten(0, 1))
    return {
        "portfolio_prediction": F.mse_loss(one_ahead_B1KD.squeeze(1), target_BKD[:, 1:]),
        "portfolio_rollout": F.mse_loss(torch.cat(ahead, dim=1), target_BKD[:, 1:]),
        "inverse_dynamics": model.inverse_dynamics.loss(
            latents_BKD[:, :-1], latents_BKD[:, 1:], assets_BKND[:, :-1], path.actions, present_BKN[:, :-1]
        ),
        "variance": variance,
        "covariance": covariance,
        "portfolio_head": F.mse_loss(model.heads.portfolio(latents_BKD.detach()), path.scalars_BKG),
    }


def _heads(model: "FinJEPA", tokens_BSMD: Tensor, predicted_BSMD: Tensor, batch: MarketBatch) -> Tensor:
    """Likelihood of the next step's returns, from encoded and from predicted latents, on which the heads are used."""
    observation = batch.observation
    asset_scale_BSN, market_scale_BS = model.scales(observation, slice(None))
    target_BSN = batch.step_return_BSN / asset_scale_BSN
    market_target_BS = batch.market_step_return_BS / market_scale_BS
    valid_BSN = batch.step_return_valid_BSN & observation.present_BN.unsqueeze(1)
    everywhere_BS = torch.ones_like(market_target_BS)
    total = target_BSN.new_zeros(())
    for tokens, steps in ((tokens_BSMD, slice(None)), (predicted_BSMD[:, :-1], slice(1, None))):
        assets, market = tokens[..., :-1, :], tokens[..., -1, :]
        inputs = model.heads.asset_inputs(assets, market)
        total = total + model.heads.asset.loss(inputs, target_BSN[:, steps], valid_BSN[:, steps])
        total = total + model.heads.market.loss(market, market_target_BS[:, steps], everywhere_BS[:, steps])
    return total
