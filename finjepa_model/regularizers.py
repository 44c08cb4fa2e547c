"""What keeps latents from collapsing.

Shapes: X any leading dimensions, N samples, D width, A directions, K knots.
"""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from finjepa_model.actions import PortfolioAction
from finjepa_model.distributed import masked_mean, sum_over_ranks


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

    It is asked of portfolio latents only: prices hold no trace of a small investor's action. Each part of the action has
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

        The budget of a flat asset leaves no trace, so the weights are asked for over the assets that are held.
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
