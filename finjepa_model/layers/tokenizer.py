"""From a window of prices to patch tokens (TS-JEPA, section 3; reference: jepa.md 1.1).

Shapes: X any batch dimensions, T sessions of a window, F channels, P patches, D width.
"""

import math

import torch
from torch import Tensor, nn


class TimeSeriesTokenizer(nn.Module):
    """A 1D CNN turns each patch of a window into a token, and a fixed sine-cosine position encoding is added.

    As in TS-JEPA the convolution has kernel 3 and stride 3 and never crosses a patch, so a masked patch cannot leak into
    its neighbours. The mask of observed sessions is one more input channel.
    """

    def __init__(self, channels: int, window: int, patch: int, dim: int):
        super().__init__()
        self.patch = patch
        self.convolution = nn.Conv1d(channels + 1, dim, kernel_size=3, stride=3)
        self.activation = nn.GELU()
        self.project = nn.Linear(dim * ((patch - 3) // 3 + 1), dim)
        self.register_buffer("position_PD", sine_cosine(window // patch, dim), persistent=False)

    def forward(self, features_XTF: Tensor, observed_XT: Tensor) -> Tensor:
        """
        Args:
            features_XTF: normalised channels, 0 where not observed.
            observed_XT: bool.

        Returns:
            tokens_XPD.
        """
        x_XTC = torch.cat([features_XTF, observed_XT.unsqueeze(-1).to(features_XTF.dtype)], dim=-1)
        batch = x_XTC.shape[:-2]
        patches_YCp = x_XTC.reshape(-1, self.patch, x_XTC.shape[-1]).transpose(1, 2)
        tokens_YD = self.project(self.activation(self.convolution(patches_YCp)).flatten(1))
        return tokens_YD.view(*batch, -1, tokens_YD.shape[-1]) + self.position_PD


def sine_cosine(length: int, dim: int) -> Tensor:
    """Fixed position encoding, [length, dim]: sines, then cosines (Attention Is All You Need, section 3.5)."""
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(dim // 2) / (dim // 2))
    angle = torch.arange(length).unsqueeze(-1) * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
