"""Encoders: windows of prices to asset and market latents, portfolio states to portfolio latents.

Shapes: X any batch dimensions, N assets, T sessions of a window, F channels, P patches, V visible patches, D width,
G portfolio scalars.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from finjepa_model.actions import AllocationEmbedder
from finjepa_model.config import ModelConfig
from finjepa_model.layers import MLP, Block, TimeSeriesTokenizer, sine_cosine
from finjepa_model.portfolio import SCALARS


def normalize(x_XD: Tensor) -> Tensor:
    """LayerNorm without parameters: every latent of the world model has zero mean and unit variance over its features."""
    return F.layer_norm(x_XD, x_XD.shape[-1:])


class ContextEncoder(nn.Module):
    """Attention over the patches of an asset, then over assets; factored, so the cost is linear in patches x assets.

    The same weights serve every asset and nothing tells assets apart but their prices: the latents are equivariant to the
    order of the assets, and any number of them will do.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        block = (config.dim, config.heads, config.mlp_ratio)
        self.tokenizer = TimeSeriesTokenizer(len(config.channels), config.window, config.patch, config.dim)
        self.time_blocks = nn.ModuleList(Block(*block) for _ in range(config.time_layers))
        self.time_norm = nn.LayerNorm(config.dim)
        # all patches, not their sum, which throws most of the information away (reference: jepa.md, section 7)
        self.pool = nn.Linear(config.patches * config.dim, config.dim)
        self.market_token_D = nn.Parameter(torch.zeros(config.dim))
        self.asset_blocks = nn.ModuleList(Block(*block) for _ in range(config.asset_layers))

    def encode_patches(self, features_XTF: Tensor, observed_XT: Tensor, visible_XV: Tensor | None = None) -> Tensor:
        """Tokens of the patches of each asset, [X, P, D]; with `visible_XV` of those patches only, [X, V, D]."""
        tokens_XPD = self.tokenizer(features_XTF, observed_XT)
        if visible_XV is not None:
            tokens_XPD = gather_patches(tokens_XPD, visible_XV)
        for block in self.time_blocks:
            tokens_XPD = block(tokens_XPD)
        return self.time_norm(tokens_XPD)

    def forward(self, features_XNTF: Tensor, observed_XNT: Tensor, present_XN: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            features_XNTF: normalised channels, 0 where not observed.
            observed_XNT: bool.
            present_XN: bool; an absent asset is not looked at, and its latent means nothing.

        Returns:
            assets_XND and market_XD.
        """
        patches_XNPD = self.encode_patches(features_XNTF, observed_XNT)
        assets_XND = self.pool(patches_XNPD.flatten(-2))
        market_X1D = self.market_token_D.expand(*assets_XND.shape[:-2], 1, -1)
        tokens_XMD = torch.cat([assets_XND, market_X1D], dim=-2)
        mask_X11M = F.pad(present_XN, (0, 1), value=True)[..., None, None, :]
        for block in self.asset_blocks:
            tokens_XMD = block(tokens_XMD, mask_X11M)
        tokens_XMD = normalize(tokens_XMD)
        return tokens_XMD[..., :-1, :], tokens_XMD[..., -1, :]


class PortfolioEncoder(nn.Module):
    """The state of a portfolio, seen against the latents of the assets that it holds."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.allocation = AllocationEmbedder(config.dim)
        self.scalars = nn.Linear(len(SCALARS), config.dim)
        self.mlp = MLP(config.dim, config.mlp_ratio)

    def forward(
        self, holdings_XN: Tensor, signals_XN: Tensor, scalars_XG: Tensor, assets_XND: Tensor, present_XN: Tensor
    ) -> Tensor:
        """portfolio_XD of holdings (signed shares of wealth after drift), last signals and `PortfolioState.scalars`."""
        hidden_XD = self.allocation(holdings_XN, signals_XN, assets_XND, present_XN) + self.scalars(scalars_XG)
        return normalize(hidden_XD + self.mlp(hidden_XD))


class MaskedPatchPredictor(nn.Module):
    """Predicts the latents of masked patches from those of visible ones (TS-JEPA, section 3)."""

    position_PD: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.project = nn.Linear(config.dim, config.dim)
        self.mask_token_D = nn.Parameter(torch.zeros(config.dim))
        self.block = Block(config.dim, config.heads, config.mlp_ratio)
        self.norm = nn.LayerNorm(config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.register_buffer("position_PD", sine_cosine(config.patches, config.dim), persistent=False)

    def forward(self, visible_XVD: Tensor, visible_XV: Tensor, masked_XU: Tensor) -> Tensor:
        """Latents of the masked patches, [X, U, D], from those of the visible ones and the numbers of both."""
        context_XVD = self.project(visible_XVD) + self.position_PD[visible_XV]
        query_XUD = self.mask_token_D + self.position_PD[masked_XU]
        hidden_XPD = self.block(torch.cat([context_XVD, query_XUD], dim=-2))
        return self.out(self.norm(hidden_XPD[..., visible_XV.shape[-1] :, :]))


def gather_patches(tokens_XPD: Tensor, index_XV: Tensor) -> Tensor:
    """Row b of the result is x[b, index[b]]; one batched gather (TS-JEPA's own code mixes the samples up)."""
    return torch.take_along_dim(tokens_XPD, index_XV.unsqueeze(-1), dim=-2)


def draw_masks(batch: int, patches: int, ratio: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Visible and masked patch numbers, [batch, V] and [batch, U]: U = int(ratio * patches), anew for every sample."""
    masked = int(ratio * patches)
    order_YP = torch.rand(batch, patches, device=device).argsort(dim=-1)
    return order_YP[:, masked:], order_YP[:, :masked]
