"""Layers: the patch tokenizer (TS-JEPA, section 3), attention with rotary position encoding, blocks with AdaLN.

Shapes: X any batch dimensions, L queries, M keys, H heads, E width of a head, D = H * E, T sessions of a window, F channels,
P patches.
"""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def rotate(x_XLE: Tensor, position_L: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary position encoding (RoFormer, eq. 34): the pair (2i, 2i+1) turns by position * base^(-2i/E).

    Pairs and angles are interleaved alike. V-JEPA 2 and JEPA-WMs tile the angles but pair neighbours, which is no
    rotation: products then depend on absolute positions (reference: vjepa2 PR 15).
    """
    width = x_XLE.shape[-1]
    frequency_P = base ** (-torch.arange(0, width, 2, device=x_XLE.device, dtype=torch.float64) / width)
    angle_LP = position_L.to(torch.float64).unsqueeze(-1) * frequency_P
    cos_LP, sin_LP = angle_LP.cos().to(x_XLE.dtype), angle_LP.sin().to(x_XLE.dtype)
    even_XLP, odd_XLP = x_XLE[..., 0::2], x_XLE[..., 1::2]
    return torch.stack([even_XLP * cos_LP - odd_XLP * sin_LP, even_XLP * sin_LP + odd_XLP * cos_LP], dim=-1).flatten(-2)


def split_heads(x_XLD: Tensor, heads: int) -> Tensor:
    """[X, L, D] to [X, H, L, E]."""
    return x_XLD.unflatten(-1, (heads, -1)).transpose(-2, -3)


def merge_heads(x_XHLE: Tensor) -> Tensor:
    return x_XHLE.transpose(-2, -3).flatten(-2)


class SelfAttention(nn.Module):
    """Multi-head self-attention; rotary when positions are given."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_XLD: Tensor, mask: Tensor | None = None, position_L: Tensor | None = None) -> Tensor:
        """
        Args:
            mask: bool, broadcastable to [X, H, L, L], True where a query may look.
            position_L: decision steps, for rotary encoding.
        """
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x_XLD).chunk(3, dim=-1))
        if position_L is not None:
            q, k = rotate(q, position_L), rotate(k, position_L)
        return self.out(merge_heads(_attend(q, k, v, mask)))


def _attend(q_XHLE: Tensor, k_XHLE: Tensor, v_XHLE: Tensor, mask: Tensor | None) -> Tensor:
    """Attention with all batch dimensions in one: with more of them PyTorch has no fused kernel, and cannot compile it."""
    batch = q_XHLE.shape[:-3]
    q, k, v = (part.flatten(0, -4) for part in (q_XHLE, k_XHLE, v_XHLE))
    if mask is not None and mask.ndim > 2:
        mask = mask.expand(*batch, *mask.shape[-3:]).flatten(0, -4)
    if q.device.type == "cpu":
        # the backward of bf16 attention takes half of the whole step there: float32 inside is 1.6 times faster
        with torch.autocast("cpu", enabled=False):
            q, k, v = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return mixed.unflatten(0, batch)


class MLP(nn.Sequential):
    """Linear, GELU (the exact one: on CPU the tanh form is four times slower), Linear."""

    def __init__(self, dim: int, ratio: float):
        hidden = int(dim * ratio)
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_ratio)

    def forward(self, x_XLD: Tensor, mask: Tensor | None = None, position_L: Tensor | None = None) -> Tensor:
        x_XLD = x_XLD + self.attention(self.attention_norm(x_XLD), mask, position_L)
        return x_XLD + self.mlp(self.mlp_norm(x_XLD))


class AdaLN(nn.Module):
    """Shift, scale and gate of a sub-layer from a condition (DiT section 3.2; JEPA-WMs: one action embedding a step). The
    condition has a small effect from the first step on."""

    def __init__(self, dim: int, parts: int):
        super().__init__()
        self.parts = parts
        self.project = nn.Linear(dim, parts * dim)
        nn.init.zeros_(self.project.bias)
        nn.init.trunc_normal_(self.project.weight, std=0.02)

    def forward(self, condition_XD: Tensor) -> tuple[Tensor, ...]:
        return self.project(F.silu(condition_XD)).chunk(self.parts, dim=-1)


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
