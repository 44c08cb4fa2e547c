"""The read-out of expected returns: linear, fitted in closed form (`finjepa_model.training.readout_fit`).

A daily cross-sectional information coefficient is a few hundredths, so few numbers are estimated and they are shrunk hard. It
reads the channels of the window beside the latents, a linear branch around the network as in TiDE (Das et al. 2023, section 4.3).

Shapes: X any batch dimensions, N assets, T sessions of a window, F channels, D width, Z = F + D inputs, H decision
steps.
"""

import torch
from torch import Tensor, nn

from finjepa_model.data.batches import recency

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
    def means(features_XTF: Tensor) -> Tensor:
        """means_XF of the channels, exponentially weighted with the span of half a window."""
        return recency(features_XTF.shape[-2], features_XTF.dtype).to(features_XTF.device) @ features_XTF

    @classmethod
    def inputs(cls, features_XTF: Tensor, latents_XD: Tensor) -> Tensor:
        """inputs_XZ: means of the channels, and the latent."""
        means_XF = cls.means(features_XTF)
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
