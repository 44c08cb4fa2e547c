"""Read-outs of the latents.

Linear heads make plans and probes readable; they learn on detached latents and send no gradient into the encoder. The
expected return is a linear read-out fitted in closed form (`finjepa_model.training.readout_fit`): a daily cross-sectional
information coefficient is a few hundredths, so few numbers are estimated and they are shrunk hard. It reads the channels of
the window beside the latents, a linear branch around the network as in TiDE (Das et al. 2023, section 4.3).

Shapes: X any batch dimensions, N assets, T sessions of a window, F channels, D width, G portfolio scalars, Z = F + D inputs,
H decision steps.
"""

import math

import torch
from torch import Tensor, nn

from finjepa_model.data.batches import recency
from finjepa_model.nn.distributed import masked_mean
from finjepa_model.portfolio import SCALARS

# The predicted volatility lies within this factor of the trailing one.
_MAX_VOLATILITY_RATIO = 4.0


class VolatilityHead(nn.Module):
    """Volatility of the next decision step's return, in units of trailing volatility. Its mean is taken as zero; `ReturnReadout`
    has the expected return."""

    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        out = nn.Linear(hidden, 1)
        nn.init.zeros_(out.weight)  # starts from "trailing volatility"
        nn.init.zeros_(out.bias)
        self.mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), out)

    def forward(self, latents_XD: Tensor) -> Tensor:
        """log_std_X of the return divided by the trailing volatility of a step."""
        log_std_X = self.mlp(latents_XD.detach()).squeeze(-1)
        bound = math.log(_MAX_VOLATILITY_RATIO)
        return bound * torch.tanh(log_std_X / bound)

    def loss(self, latents_XD: Tensor, target_X: Tensor, valid_X: Tensor) -> Tensor:
        """Gaussian negative log likelihood (without its constant) about a mean of zero, mean over valid entries; targets are
        clipped at 5."""
        log_std_X = self(latents_XD)
        nll_X = 0.5 * (target_X.clamp(-5, 5) * torch.exp(-log_std_X)).square() + log_std_X
        return masked_mean(nll_X, valid_X)


class Heads(nn.Module):
    """Volatility of assets and of the market, and the scalars of a portfolio state."""

    def __init__(self, dim: int):
        super().__init__()
        self.asset = VolatilityHead(2 * dim, dim)
        self.market = VolatilityHead(dim, dim)
        self.portfolio = nn.Linear(dim, len(SCALARS))

    @staticmethod
    def asset_inputs(assets_XND: Tensor, market_XD: Tensor) -> Tensor:
        """An asset's volatility is read from its latent and the market's."""
        return torch.cat([assets_XND, market_XD.unsqueeze(-2).expand_as(assets_XND)], dim=-1)


# A step's expected return is at most this many of its standard deviations, whatever was fitted.
_MAX_SHARPE = 1.0


class ReturnReadout(nn.Module):
    """mean of step h = level mean(volatility) + persistence^h score volatility; volatilities are trailing, over a decision step.

    The score is relative to the assets of its date (Fama and MacBeth 1973; Gu, Kelly and Xiu 2020 rank within a date): what the
    market as a whole will do is left to the level, its mean over the training block, which is hard to beat (Welch and Goyal
    2008). The level is the same return for every asset of a date, not more for who moves more: across assets, volatility is
    not paid for (Ang, Hodrick, Xing and Zhang 2006). Scores revert to zero at one pace (Garleanu and Pedersen 2013). Before it
    is fitted the mean is 0.
    """

    weights_Z: Tensor
    level: Tensor
    persistence: Tensor

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.register_buffer("weights_Z", torch.zeros(channels + dim))
        self.register_buffer("level", torch.zeros(()))
        self.register_buffer("persistence", torch.ones(()))

    @staticmethod
    def inputs(features_XTF: Tensor, latents_XD: Tensor) -> Tensor:
        """inputs_XZ: exponentially weighted means of the channels with the span of half a window, and the latent."""
        means_XF = recency(features_XTF.shape[-2], features_XTF.dtype).to(features_XTF.device) @ features_XTF
        return torch.cat([means_XF, latents_XD.to(means_XF.dtype)], dim=-1)

    def forward(self, inputs_XNZ: Tensor, volatility_XN: Tensor, present_XN: Tensor, horizon: int) -> Tensor:
        """mean_XHN, simple returns of the next `horizon` decision steps; of absent assets it means nothing.

        Args:
            volatility_XN: trailing, over a decision step.
        """
        score_XN = inputs_XNZ @ self.weights_Z
        score_XN = (score_XN - _mean_of(score_XN, present_XN)) * volatility_XN
        fading_H1 = self.persistence ** torch.arange(horizon, device=score_XN.device).unsqueeze(-1)
        level_X11 = (self.level * _mean_of(volatility_XN, present_XN)).unsqueeze(-2)
        most_X1N = _MAX_SHARPE * volatility_XN.unsqueeze(-2)
        return torch.clamp(level_X11 + fading_H1 * score_XN.unsqueeze(-2), -most_X1N, most_X1N)

    @torch.no_grad()
    def set(self, weights_Z: Tensor, level: float, persistence: float) -> None:
        """Take over what was fitted."""
        self.weights_Z.copy_(weights_Z)
        self.level.fill_(level)
        self.persistence.fill_(persistence)


def _mean_of(x_XN: Tensor, present_XN: Tensor) -> Tensor:
    total_X1 = torch.where(present_XN, x_XN, 0.0).sum(-1, keepdim=True)
    return total_X1 / present_XN.sum(-1, keepdim=True).clamp(min=1)
