"""From a window of prices to patch tokens (TS-JEPA, section 3; reference: jepa.md 1.1).

Shapes: X any batch dimensions, T sessions of a window, F channels, P patches, D width.
"""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

_KERNEL = 3


class TimeSeriesTokenizer(nn.Module):
    """A 1D CNN turns each patch of a window into a token, and a fixed sine-cosine position encoding is added.

    As in TS-JEPA the convolution has kernel 3 and stride 3 and never crosses a patch, so a masked patch cannot leak into
    its neighbours. Unlike there a patch whose length is no multiple of 3 is padded in front: TS-JEPA drops the remainder,
    which here would be the newest session of all. The mask of observed sessions is one more input channel.
    """

    position_PD: Tensor

    def __init__(self, channels: int, window: int, patch: int, dim: int):
        super().__init__()
        self.patch, self.padding = patch, -patch % _KERNEL
        # kernel and stride are equal, so the convolution is a matrix product with pieces that do not overlap
        self.convolution = nn.Linear(_KERNEL * (channels + 1), dim)
        self.activation = nn.GELU()
        self.project = nn.Linear(dim * ((patch + self.padding) // _KERNEL), dim)
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
        x_XPpC = F.pad(x_XTC.unflatten(-2, (-1, self.patch)), (0, 0, self.padding, 0))
        pieces = x_XPpC.unflatten(-2, (-1, _KERNEL)).flatten(-2)
        hidden_XPD = self.activation(self.convolution(pieces)).flatten(-2)
        return self.project(hidden_XPD) + self.position_PD


def sine_cosine(length: int, dim: int) -> Tensor:
    """Fixed position encoding, [length, dim]: sines, then cosines (Attention Is All You Need, section 3.5)."""
    frequency = np.exp(-np.log(10_000.0) * np.arange(dim // 2) / (dim // 2))
    angle = np.arange(length)[:, None] * frequency
    return torch.from_numpy(np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)).float()
