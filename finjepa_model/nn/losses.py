"""The training objective: every term and their weighted sum.

Teacher-forced and K-step autoregressive prediction of target latents (JEPA-WMs, section 3), masked patches (TS-JEPA), a
regulariser against collapse (`LossConfig.recipe`: SIGReg, VICReg or an EMA teacher), inverse dynamics and
variance-covariance on the portfolio latents (EB-JEPA), labels of risk. With several processes each term is this rank's share: the
average over ranks is the term of the global batch.

Shapes: B decision dates, S steps (W context steps, then K that are predicted), N assets, M = N + 1 tokens, X any leading
dimensions, Y samples, D width, A directions, G portfolio scalars.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from finjepa_model.actions import PortfolioAction
from finjepa_model.data.batches import MarketBatch, Observation
from finjepa_model.nn.distributed import masked_mean, sum_over_ranks
from finjepa_model.nn.encoder import masked_patch_error
from finjepa_model.nn.predictor import MarketMemory

if TYPE_CHECKING:
    from finjepa_model.world_model import PortfolioPath, WorldModel


class SIGReg(nn.Module):
    """Sketched isotropic Gaussian regularisation (LeJEPA; reference: jepa.md 1.5).

    The Epps-Pulley statistic of random one-dimensional projections against N(0, 1):
    integral of |phi_n(t) - exp(-t^2/2)|^2 exp(-t^2/2) dt, by the trapezoid rule with `knots` knots on [0, `t_max`], doubled.
    LeJEPA multiplies it by the number of samples N; here it is left out, so that the weight of the term means the same at
    every batch size. For iid N(0, I) its expectation is 1.0525 / N; for a full collapse to 0 it is 0.40205.

    It belongs on the very latents that are predicted. LeJEPA and LeWM put a projector with batch normalisation before it,
    and predict behind that projector; where the prediction is made before it, the projector lets latents shrink as far as
    the prediction loss likes and blows them up again (docs/results/world-model.md).
    """

    weight_K: Tensor
    gaussian_K: Tensor

    def __init__(self, slices: int = 256, knots: int = 17, t_max: float = 3.0):
        super().__init__()
        self.slices, self.knots, self.spacing = slices, knots, t_max / (knots - 1)
        t_K = np.linspace(0, t_max, knots)
        trapezoid_K = np.full_like(t_K, 2 * self.spacing)
        trapezoid_K[[0, -1]] /= 2
        gaussian_K = np.exp(-(t_K**2) / 2)
        self.register_buffer("gaussian_K", torch.from_numpy(gaussian_K), persistent=False)
        self.register_buffer("weight_K", torch.from_numpy(trapezoid_K * gaussian_K), persistent=False)

    def statistic(self, projected_XNA: Tensor) -> Tensor:
        """Epps-Pulley statistic over samples, [X, A]; over the samples of all ranks when distributed."""
        count = sum_over_ranks(projected_XNA.new_tensor(float(projected_XNA.shape[-2])))
        sums_2XAK = _CharacteristicSums.apply(projected_XNA, self.knots, self.spacing)
        real_XAK, imaginary_XAK = sum_over_ranks(sums_2XAK) / count
        error_XAK = (real_XAK - self.gaussian_K.to(real_XAK.dtype)).square() + imaginary_XAK.square()
        return (error_XAK * self.weight_K.to(error_XAK.dtype)).sum(-1)

    def forward(self, samples_XND: Tensor, seed: int) -> Tensor:
        """
        Args:
            samples_XND: samples that are independent along N (dates); leading dimensions, such as the time index, are
                tested each on their own.
            seed: of the directions; the same on every rank, another one at every step.

        Returns:
            The mean statistic, a scalar; always computed in float32 or wider.
        """
        with torch.autocast(samples_XND.device.type, enabled=False):
            samples_XND = samples_XND.to(torch.promote_types(samples_XND.dtype, torch.float32))
            generator = torch.Generator(device="cpu").manual_seed(seed)
            direction_DA = torch.randn(samples_XND.shape[-1], self.slices, generator=generator)
            direction_DA = F.normalize(direction_DA, dim=0).to(samples_XND)
            return self.statistic(samples_XND @ direction_DA).mean()


class _CharacteristicSums(torch.autograd.Function):
    """Sums over samples of cos(t u) and sin(t u) at t = 0, spacing, 2 spacing, ..., [2, X, A, K].

    One cosine and one sine a sample: with z = exp(i spacing u) the other knots are its powers. The backward pass is a
    polynomial in z with a coefficient a knot, by Horner's rule, so that memory does not grow with the number of knots.
    """

    @staticmethod
    def forward(ctx, projected_XNA: Tensor, knots: int, spacing: float) -> Tensor:
        ctx.save_for_backward(projected_XNA)
        ctx.knots, ctx.spacing = knots, spacing
        z_XNA = _unit(spacing * projected_XNA)
        power_XNA = torch.ones_like(z_XNA)
        sums = []
        for _ in range(knots):
            sums.append(power_XNA.sum(-2))
            power_XNA *= z_XNA
        return torch.view_as_real(torch.stack(sums, dim=-1)).movedim(-1, 0)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (projected_XNA,) = ctx.saved_tensors
        of_cos_XAK, of_sin_XAK = gradients[0] * (ctx.spacing * torch.arange(ctx.knots, device=projected_XNA.device))
        # the real part of (s + i c) (cos + i sin) is s cos - c sin
        coefficient_KX1A = torch.complex(of_sin_XAK, of_cos_XAK).movedim(-1, 0).unsqueeze(-2).contiguous()
        z_XNA = _unit(ctx.spacing * projected_XNA)
        total_XNA = torch.zeros_like(z_XNA)
        for coefficient_X1A in coefficient_KX1A.flip(0):
            torch.addcmul(coefficient_X1A, total_XNA, z_XNA, out=total_XNA)
        return total_XNA.real, None, None


def _unit(angle_X: Tensor) -> Tensor:
    """exp(i angle)."""
    return torch.polar(torch.ones_like(angle_X), angle_X)


def variance_covariance(samples_ND: Tensor) -> tuple[Tensor, Tensor]:
    """VICReg's terms (EB-JEPA): hinge of the standard deviation at 1, and mean squared off-diagonal covariance.

    Of all ranks' samples when distributed, and in float32 or wider.
    """
    with torch.autocast(samples_ND.device.type, enabled=False):
        samples_ND = samples_ND.to(torch.promote_types(samples_ND.dtype, torch.float32))
        n = sum_over_ranks(samples_ND.new_tensor(float(samples_ND.shape[0])))
        centred_ND = samples_ND - sum_over_ranks(samples_ND.sum(0)) / n
        covariance_DD = sum_over_ranks(centred_ND.T @ centred_ND) / (n - 1)
        variance = F.relu(1 - (covariance_DD.diagonal() + 1e-4).sqrt()).mean()
        off_diagonal = covariance_DD.square().sum() - covariance_DD.diagonal().square().sum()
        return variance, off_diagonal / (len(covariance_DD) * (len(covariance_DD) - 1))


class InverseDynamics(nn.Module):
    """Recovers the action between two portfolio latents (EB-JEPA, section 3; reference: jepa.md, trap 1).

    Of portfolio latents only: a small investor's action does not change prices. Each part of the action has
    its own loss: cross-entropy of the weights over assets, cross-entropy of the three signals, binary for the hedge.
    """

    def __init__(self, dim: int, max_hidden: int = 256):
        super().__init__()
        hidden = min(4 * dim, max_hidden)
        self.trunk = nn.Sequential(nn.Linear(2 * dim, hidden), nn.GELU(), nn.Linear(hidden, dim), nn.GELU())
        self.asset = nn.Sequential(nn.Linear(3 * dim, hidden), nn.GELU(), nn.Linear(hidden, 4))
        self.hedge = nn.Linear(dim, 1)

    def forward(self, before_XD: Tensor, after_XD: Tensor, assets_XND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the weights [X, N], of the signals -1, 0, 1 [X, N, 3], and of the hedge [X]."""
        trunk_XD = self.trunk(torch.cat([before_XD, after_XD], dim=-1))
        trunk_XND = trunk_XD.unsqueeze(-2).expand_as(assets_XND)
        asset_XN4 = self.asset(torch.cat([trunk_XND, assets_XND, trunk_XND * assets_XND], dim=-1))
        return asset_XN4[..., 0], asset_XN4[..., 1:], self.hedge(trunk_XD).squeeze(-1)

    def loss(
        self, before_XD: Tensor, after_XD: Tensor, assets_XND: Tensor, action: PortfolioAction, present_XN: Tensor
    ) -> Tensor:
        """Sum of the three losses, each divided by that of an ignorant guess (log N, log 3, log 2).

        The budget of a flat asset changes nothing, so weights are predicted over the assets that are held.
        """
        held_XN = action.weights_XN * action.signals_XN.abs() + 1e-6 * present_XN
        held_XN = held_XN / held_XN.sum(-1, keepdim=True)
        weights_XN, signals_XN3, hedge_X = self(before_XD, after_XD, assets_XND)
        log_weights_XN = weights_XN.masked_fill(~present_XN, -1e9).log_softmax(-1)
        n_X = present_XN.sum(-1).clamp(min=2).to(log_weights_XN.dtype)
        weights = (-(held_XN * log_weights_XN).sum(-1) / n_X.log()).mean()
        classes_XN = (action.signals_XN + 1).long()
        signals_XN = F.cross_entropy(signals_XN3.flatten(0, -2), classes_XN.flatten(), reduction="none")
        signals = masked_mean(signals_XN, present_XN.flatten()) / torch.log(n_X.new_tensor(3.0))
        hedge = F.binary_cross_entropy_with_logits(hedge_X, action.hedge_X) / torch.log(n_X.new_tensor(2.0))
        return weights + signals + hedge


def objective(model: "WorldModel", batch: MarketBatch, path: "PortfolioPath", seed: int) -> dict[str, Tensor]:
    """Every term of the objective, and their weighted sum under "loss".

    Args:
        batch: W + K steps of the market.
        path: a portfolio that was held over the last K + 1 of them.
        seed: of SIGReg's directions; another one at every step, the same on every rank.
    """
    weights, observation = model.config.loss, batch.observation
    tokens_BSMD, patches_BSNPD = model.see(model.encoder, observation)
    # Targets share no session with the context, or most of a prediction would be a copy and latents would keep what is old.
    # They carry no gradient in any recipe: patches that are their own target go constant.
    newest = observation.features_BSNTF[:, -1], observation.observed_BSNT[:, -1]
    with torch.no_grad():
        target_BSMD, _ = model.see(model.teacher, batch.ahead)
        target_BNPD = model.teacher.encode_patches(*newest) if model.has_teacher else patches_BSNPD[:, -1]

    predicted_BSMD, memory = model.predictor.market(tokens_BSMD, observation.present_BN)
    ahead_BKMD = _roll_out(model, tokens_BSMD, predicted_BSMD, observation)
    masked = masked_patch_error(model.encoder, model.patch_predictor, *newest, target_BNPD, weights.mask_ratio)
    terms = {
        "prediction": _latent_error(predicted_BSMD[:, :-1], target_BSMD, observation.present_BN),
        "rollout": _latent_error(ahead_BKMD, target_BSMD[:, -weights.rollout_steps :], observation.present_BN),
        "masked_patch": masked_mean(masked, observation.present_BN),
    }
    if weights.recipe in ("sigreg", "both"):
        terms["sigreg"] = _sigreg(model, tokens_BSMD, observation.present_BN, seed)
    if weights.recipe == "vicreg":
        terms |= _vicreg(tokens_BSMD, observation.present_BN)
    terms |= _portfolio_terms(model, tokens_BSMD, memory, observation, path)
    if batch.after_BNT is not None and weights.risk > 0:
        terms["risk"] = _risk(model, tokens_BSMD[:, -1 - weights.rollout_steps], batch)
    for name in ("prediction", "rollout"):
        terms[name] = terms[name] + terms.pop(f"portfolio_{name}")
    terms["loss"] = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
    return terms


_FACTORS = 0.1  # weight of the likelihood beside the error


def _risk(model: "WorldModel", tokens_BMD: Tensor, batch: MarketBatch) -> Tensor:
    """Of the sessions after the last context step: error of log volatility within the date, and, with factors, minus the log
    likelihood of the cross-section of returns."""
    present_BN, after_BNT = batch.observation.present_BN, batch.after_BNT
    assert after_BNT is not None
    assert model.risk.head is not None
    assets_BND, market_BD = tokens_BMD[:, :-1], tokens_BMD[:, -1]
    terms = model.risk.head.loss(assets_BND, market_BD, after_BNT, present_BN)
    return terms["volatility"] + _FACTORS * terms["factors"] if "factors" in terms else terms["volatility"]


def _roll_out(model: "WorldModel", tokens_BSMD: Tensor, predicted_BSMD: Tensor, observation: Observation) -> Tensor:
    """K steps ahead of the context. The first of them is the teacher-forced prediction there, so it is not made again."""
    weights = model.config.loss
    context = observation.steps - weights.rollout_steps
    first_B1MD = predicted_BSMD[:, context - 1 : context]
    if weights.rollout_steps == 1:
        return first_B1MD
    known = torch.cat([tokens_BSMD[:, :context], first_B1MD.detach()], dim=1)
    rest = model.rollout(known, observation.present_BN, weights.rollout_steps - 1)
    return torch.cat([first_B1MD, rest], dim=1)


def _latent_error(predicted_BSMD: Tensor, target_BSMD: Tensor, present_BN: Tensor) -> Tensor:
    """Mean squared error over the tokens of present assets and of the market."""
    error_BSM = (predicted_BSMD.float() - target_BSMD.float()).square().mean(-1)
    return masked_mean(error_BSM, F.pad(present_BN, (0, 1), value=True).unsqueeze(1).expand_as(error_BSM))


def _samples(tokens_BSMD: Tensor, present_BN: Tensor) -> tuple[Tensor, Tensor]:
    """assets_SYD and market_SBD: at each time index, the latents of all dates (and assets)."""
    assets_SYD = tokens_BSMD[..., :-1, :].transpose(1, 2)[present_BN].transpose(0, 1)
    return assets_SYD, tokens_BSMD[..., -1, :].transpose(0, 1)


def _sigreg(model: "WorldModel", tokens_BSMD: Tensor, present_BN: Tensor, seed: int) -> Tensor:
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
    model: "WorldModel", tokens_BSMD: Tensor, memory: MarketMemory, observation: Observation, path: "PortfolioPath"
) -> dict[str, Tensor]:
    """All latents of a path are taken among the assets as they were at its beginning, so that they move with holdings alone."""
    steps = model.config.loss.rollout_steps
    first_step = observation.steps - 1 - steps
    assets_BKND = tokens_BSMD[:, first_step:-1, :-1].detach()
    present_B1N = observation.present_BN.unsqueeze(1)
    carriers_B1NE = model.portfolio_encoder.carriers(assets_BKND[:, :1], present_B1N)
    latents_BKD = model.portfolio_encoder(path.holdings_BKN, path.scalars_BKG, carriers_B1NE)
    traded_BKD = model.portfolio_encoder(path.traded_BKN, path.traded_scalars_BKG, carriers_B1NE)
    present_BKN = present_B1N.expand(-1, steps, -1)
    condition_BKD = model.action_embedder(path.actions, path.holdings_BKN[:, :-1], assets_BKND, present_BKN)
    predict = model.predictor.portfolio
    one_ahead_B1KD, _ = predict(
        latents_BKD[:, None, :-1], condition_BKD[:, None], traded_BKD[:, None], first_step, memory
    )
    token_B1D, past, ahead = latents_BKD[:, None, :1], None, []
    for k in range(steps):
        now = slice(k, k + 1)
        token_B1D, past = predict(
            token_B1D, condition_BKD[:, None, now], traded_BKD[:, None, now], first_step + k, memory, past
        )
        ahead.append(token_B1D[:, 0])
        token_B1D = token_B1D.detach()
    return {
        "portfolio_prediction": F.mse_loss(one_ahead_B1KD.squeeze(1), latents_BKD[:, 1:]),
        "portfolio_rollout": F.mse_loss(torch.cat(ahead, dim=1), latents_BKD[:, 1:]),
        "inverse_dynamics": model.inverse_dynamics.loss(
            latents_BKD[:, :-1], latents_BKD[:, 1:], assets_BKND, path.actions, present_BKN
        ),
    }
