"""Read-outs of the latents, which make plans and probes readable. They learn on detached latents and teach the encoder nothing.

Shapes: X any batch dimensions, N assets, D width, G portfolio scalars.
"""

import math

import torch
from torch import Tensor, nn

from finjepa_model.distributed import masked_mean
from finjepa_model.portfolio import SCALARS

# The predicted volatility lies within this factor of the trailing one.
_MAX_VOLATILITY_RATIO = 4.0


class VolatilityHead(nn.Module):
    """Volatility of the next decision step's return, in units of trailing volatility. What is expected of it is another matter
    (`finjepa_model.readout`): beside a step's deviation its mean is nothing."""

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
