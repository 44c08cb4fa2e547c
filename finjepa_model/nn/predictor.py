"""The predictor: tomorrow's latents from today's (JEPA-WMs, section 3; reference: jepa.md 1.3).

Two streams. The market stream (assets and market) gets no action and never looks at the portfolio: a small investor does
not move prices, so the derivative of a predicted market latent with respect to an action is exactly zero. The portfolio
stream is conditioned by the action through AdaLN and looks at both. A planner therefore rolls the market out once, keeps
its keys and values (`MarketMemory`), and candidates roll one token each.

Shapes: X batch, C candidates, S steps of the market, M = N + 1 tokens (assets, then the market), D width, H heads,
E = D / H, L new portfolio steps, R portfolio steps so far, J = S * M.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from finjepa_model.config import ModelConfig
from finjepa_model.nn.encoder import normalize
from finjepa_model.nn.layers import MLP, AdaLN, SelfAttention, merge_heads, rotate, split_heads

_DRIFT = 0.1  # how far the returns of a decision step move a portfolio latent, about


@dataclass(frozen=True)
class MarketMemory:
    """Keys and values of the market for every layer of the portfolio stream."""

    keys_XHJE: list[Tensor]
    values_XHJE: list[Tensor]
    step_J: Tensor
    present_XJ: Tensor
    tokens: int  # of a step, M

    def between(self, first: int, last: int) -> "MarketMemory":
        """What there is of the steps from `first` to `last`."""
        kept = slice(max(first, 0) * self.tokens, (last + 1) * self.tokens)
        keys, values = ([x[..., kept, :] for x in layers] for layers in (self.keys_XHJE, self.values_XHJE))
        return MarketMemory(keys, values, self.step_J[kept], self.present_XJ[..., kept], self.tokens)

    def take(self, one: slice | Tensor) -> "MarketMemory":
        """That of some of the markets of a batch, by their numbers."""
        keys, values = ([x[one] for x in layers] for layers in (self.keys_XHJE, self.values_XHJE))
        return MarketMemory(keys, values, self.step_J, self.present_XJ[one], self.tokens)


@dataclass(frozen=True)
class PortfolioPast:
    """Keys and values of the portfolio's own past, for every layer."""

    keys_XCHRE: list[Tensor]
    values_XCHRE: list[Tensor]
    step_R: Tensor


class MarketBlock(nn.Module):
    """Attention over steps (rotary, causal), then over tokens of a step, then an MLP."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.step_norm = nn.LayerNorm(config.dim)
        self.step_attention = SelfAttention(config.dim, config.heads)
        self.token_norm = nn.LayerNorm(config.dim)
        self.token_attention = SelfAttention(config.dim, config.heads)
        self.mlp_norm = nn.LayerNorm(config.dim)
        self.mlp = MLP(config.dim, config.mlp_ratio)

    def forward(self, x_XSMD: Tensor, step_mask_SS: Tensor, token_mask: Tensor, step_S: Tensor) -> Tensor:
        x_XMSD = x_XSMD.transpose(-2, -3)
        x_XMSD = x_XMSD + self.step_attention(self.step_norm(x_XMSD), step_mask_SS, step_S)
        x_XSMD = x_XMSD.transpose(-2, -3)
        x_XSMD = x_XSMD + self.token_attention(self.token_norm(x_XSMD), token_mask)
        return x_XSMD + self.mlp(self.mlp_norm(x_XSMD))


class PortfolioBlock(nn.Module):
    """Attention of the portfolio token to its own past and to the market, and an MLP; both conditioned by the action."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads = config.heads
        self.condition = AdaLN(config.dim, parts=6)
        self.attention_norm = nn.LayerNorm(config.dim, elementwise_affine=False)
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.market_norm = nn.LayerNorm(config.dim)
        self.market_kv = nn.Linear(config.dim, 2 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.mlp_norm = nn.LayerNorm(config.dim, elementwise_affine=False)
        self.mlp = MLP(config.dim, config.mlp_ratio)

    def remember_market(self, x_XSMD: Tensor, step_J: Tensor) -> tuple[Tensor, Tensor]:
        keys_XJD, values_XJD = self.market_kv(self.market_norm(x_XSMD)).flatten(-3, -2).chunk(2, dim=-1)
        return rotate(split_heads(keys_XJD, self.heads), step_J), split_heads(values_XJD, self.heads)

    def forward(
        self,
        x_XCLD: Tensor,
        condition_XCLD: Tensor,
        step_L: Tensor,
        own_mask_LR: Tensor,
        past: tuple[Tensor, Tensor] | None,
        market: tuple[Tensor, Tensor],
        market_mask_XLJ: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.condition(condition_XCLD)
        hidden = self.attention_norm(x_XCLD) * (1 + scale_a) + shift_a
        query, keys, values = (split_heads(part, self.heads) for part in self.qkv(hidden).chunk(3, dim=-1))
        query, keys = rotate(query, step_L), rotate(keys, step_L)
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=-2), torch.cat([past[1], values], dim=-2)
        own_logits = (query @ keys.transpose(-1, -2)).masked_fill(~own_mask_LR, -torch.inf)
        market_logits = torch.einsum("xchle,xhje->xchlj", query, market[0])
        if market_mask_XLJ is not None:
            market_logits = market_logits.masked_fill(~market_mask_XLJ[:, None, None], -torch.inf)
        logits = torch.cat([own_logits, market_logits], dim=-1) * query.shape[-1] ** -0.5
        own_share, market_share = logits.softmax(dim=-1).split([own_logits.shape[-1], market_logits.shape[-1]], dim=-1)
        mixed = own_share @ values + torch.einsum("xchlj,xhje->xchle", market_share, market[1])
        x_XCLD = x_XCLD + gate_a * self.out(merge_heads(mixed))
        x_XCLD = x_XCLD + gate_m * self.mlp(self.mlp_norm(x_XCLD) * (1 + scale_m) + shift_m)
        return x_XCLD, (keys, values)


class Predictor(nn.Module):
    """Both streams; a step looks back over `context_steps` steps, itself included, in every layer."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.context_steps = config.context_steps
        self.market_blocks = nn.ModuleList(MarketBlock(config) for _ in range(config.predictor_layers))
        self.market_out = nn.Sequential(nn.LayerNorm(config.dim), nn.Linear(config.dim, config.dim))
        self.portfolio_blocks = nn.ModuleList(PortfolioBlock(config) for _ in range(config.predictor_layers))
        self.portfolio_out = nn.Sequential(nn.LayerNorm(config.dim), nn.Linear(config.dim, config.dim))
        nn.init.zeros_(self.portfolio_out[1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.portfolio_out[1].bias)  # type: ignore[arg-type]

    def market(self, tokens_XSMD: Tensor, present_XN: Tensor) -> tuple[Tensor, MarketMemory]:
        """Predict the market one step ahead, at every step.

        Args:
            tokens_XSMD: asset latents and, last, the market latent, of steps 0 to S - 1.
            present_XN: bool.

        Returns:
            next_XSMD, the prediction for step s + 1 at place s, and what the portfolio stream may look at.
        """
        steps, tokens = tokens_XSMD.shape[-3:-1]
        step_S = torch.arange(steps, device=tokens_XSMD.device)
        step_J = step_S.repeat_interleave(tokens)
        present_XM = F.pad(present_XN, (0, 1), value=True)
        step_mask_SS = self._looks_back(step_S, step_S)
        token_mask_X111M = present_XM[..., None, None, None, :]
        keys, values = [], []
        x_XSMD = tokens_XSMD
        for market_block, portfolio_block in zip(self.market_blocks, self.portfolio_blocks, strict=True):
            x_XSMD = market_block(x_XSMD, step_mask_SS, token_mask_X111M, step_S)
            # the market learns from the market alone: a portfolio's loss does not bend its latents
            key, value = cast(PortfolioBlock, portfolio_block).remember_market(x_XSMD.detach(), step_J)
            keys.append(key)
            values.append(value)
        present_XJ = present_XM.unsqueeze(-2).expand(*present_XM.shape[:-1], steps, tokens).flatten(-2)
        memory = MarketMemory(keys, values, step_J, present_XJ, tokens)
        return normalize(tokens_XSMD + self.market_out(x_XSMD)), memory

    def portfolio(
        self,
        tokens_XCLD: Tensor,
        condition_XCLD: Tensor,
        traded_XCLD: Tensor,
        first_step: int,
        memory: MarketMemory,
        past: PortfolioPast | None = None,
    ) -> tuple[Tensor, PortfolioPast]:
        """Predict the portfolio one step ahead: what a trade leads to at once is known, the returns that follow are not.

        Args:
            tokens_XCLD: portfolio latents of steps `first_step` to `first_step` + L - 1.
            condition_XCLD: embeddings of the actions taken there.
            traded_XCLD: latents of the portfolio right after them.
            memory: the market, which must reach those steps.

        Returns:
            next_XCLD, and the past to go on from.
        """
        step_L = torch.arange(first_step, first_step + tokens_XCLD.shape[-2], device=tokens_XCLD.device)
        step_R = step_L if past is None else torch.cat([past.step_R, step_L])
        own_mask_LR = self._looks_back(step_L, step_R)
        memory = memory.between(first_step - self.context_steps + 1, first_step + len(step_L) - 1)
        market_mask_XLJ = self._looks_back(step_L, memory.step_J) & memory.present_XJ.unsqueeze(-2)
        if len(step_L) == 1 and bool(market_mask_XLJ.all()):  # a single step may look at all that is left
            market_mask_XLJ = None
        keys, values = [], []
        x_XCLD = tokens_XCLD
        for i, block in enumerate(self.portfolio_blocks):
            own = None if past is None else (past.keys_XCHRE[i], past.values_XCHRE[i])
            market = (memory.keys_XHJE[i], memory.values_XHJE[i])
            x_XCLD, (key, value) = block(x_XCLD, condition_XCLD, step_L, own_mask_LR, own, market, market_mask_XLJ)
            keys.append(key)
            values.append(value)
        return traded_XCLD + _DRIFT * self.portfolio_out(x_XCLD), PortfolioPast(keys, values, step_R)

    def _looks_back(self, from_L: Tensor, to_R: Tensor) -> Tensor:
        distance_LR = from_L.unsqueeze(-1) - to_R
        return (distance_LR >= 0) & (distance_LR < self.context_steps)
