"""Read-outs of the latents, which make plans and probes readable. They learn on detached latents and teach the encoder nothing.

Shapes: X any batch dimensions, N assets, D width, G portfolio scalars.
"""

import math

import torch
from torch import Tensor, nn

from finjepa_model.distributed import masked_mean
from finjepa_model.portfolio import SCALARS

# A step's expected return is at most this many of its standard deviations, whatever a network says.
_MAX_SHARPE = 1.0
# The predicted volatility lies within this factor of the trailing one.
_MAX_VOLATILITY_RATIO = 4.0


class ReturnHead(nn.Module):
    """Gaussian forecast of the next decision step's return, in units of trailing volatility."""

    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        out = nn.Linear(hidden, 2)
        nn.init.zeros_(out.weight)  # starts from "no expected return, trailing volatility"
        nn.init.zeros_(out.bias)
        self.mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), out)

    def forward(self, latents_XD: Tensor) -> tuple[Tensor, Tensor]:
        """mean_X and log_std_X of the return divided by the trailing volatility of a step."""
        mean_X, log_std_X = self.mlp(latents_XD.detach()).unbind(-1)
        bound = math.log(_MAX_VOLATILITY_RATIO)
        return _MAX_SHARPE * torch.tanh(mean_X), bound * torch.tanh(log_std_X / bound)

    def loss(self, latents_XD: Tensor, target_X: Tensor, valid_X: Tensor) -> Tensor:
        """Negative log likelihood (without its constant), mean over valid entries; targets are clipped at 5."""
        mean_X, log_std_X = self(latents_XD)
        z_X = (target_X.clamp(-5, 5) - mean_X) * torch.exp(-log_std_X)
        nll_X = 0.5 * z_X.square() + log_std_X
        return masked_mean(nll_X, valid_X)


class Heads(nn.Module):
    """Expected return and volatility of assets, volatility of the market, and the scalars of a portfolio state."""

    def __init__(self, dim: int):
        super().__init__()
        self.asset = ReturnHead(2 * dim, dim)
        self.market = ReturnHead(dim, dim)
        self.portfolio = nn.Linear(dim, len(SCALARS))

    @staticmethod
    def asset_inputs(assets_XND: Tensor, market_XD: Tensor) -> Tensor:
        """An asset's return is read from its latent and the market's."""
        return torch.cat([assets_XND, market_XD.unsqueeze(-2).expand_as(assets_XND)], dim=-1)
