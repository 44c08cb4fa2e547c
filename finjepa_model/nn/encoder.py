"""Encoders: windows of prices to asset and market latents, portfolio states to portfolio latents.

Shapes: X any batch dimensions, N assets, T sessions of a window, F channels, Q market channels, P patches,
V visible patches, U masked patches, D width, M = N + 1 tokens, G portfolio scalars.
"""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from finjepa_model.config import ModelConfig
from finjepa_model.nn.distributed import draw_rows
from finjepa_model.nn.layers import Block, TimeSeriesTokenizer, sine_cosine
from finjepa_model.portfolio import SCALARS


def normalize(x_XD: Tensor) -> Tensor:
    """LayerNorm without parameters: every latent of the world model has zero mean and unit variance over its features."""
    return F.layer_norm(x_XD, x_XD.shape[-1:])


class ContextEncoder(nn.Module):
    """Attention over the patches of an asset, then over assets; factored, so the cost is linear in patches x assets.

    The weights are shared by all assets, and only prices distinguish them: the latents are equivariant to the order of the
    assets, whose number is free.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        block = (config.dim, config.heads, config.mlp_ratio)
        self.tokenizer = TimeSeriesTokenizer(len(config.channels), config.window, config.patch, config.dim)
        self.time_blocks = nn.ModuleList(Block(*block) for _ in range(config.time_layers))
        self.time_norm = nn.LayerNorm(config.dim)
        # all patches, not their sum, which throws most of the information away (reference: jepa.md, section 7)
        self.pool = nn.Linear(config.patches * config.dim, config.dim)
        self.market_tokenizer = TimeSeriesTokenizer(
            len(config.market_channels), config.window, config.patch, config.dim
        )
        self.market_pool = nn.Linear(config.patches * config.dim, config.dim)
        self.asset_blocks = nn.ModuleList(Block(*block) for _ in range(config.asset_layers))

    def encode_patches(self, features_XTF: Tensor, observed_XT: Tensor, visible_XV: Tensor | None = None) -> Tensor:
        """Tokens of the patches of each asset, [X, P, D]; with `visible_XV` of those patches only, [X, V, D]."""
        tokens_XPD = self.tokenizer(features_XTF, observed_XT)
        if visible_XV is not None:
            tokens_XPD = gather_patches(tokens_XPD, visible_XV)
        return self._over_time(tokens_XPD)

    def encode_market_patches(self, market_XTQ: Tensor) -> Tensor:
        """Tokens of the patches of the market's own channels, [X, P, D]."""
        every_session_XT = torch.ones(market_XTQ.shape[:-1], dtype=torch.bool, device=market_XTQ.device)
        return self._over_time(self.market_tokenizer(market_XTQ, every_session_XT))

    def combine(self, patches_XNPD: Tensor, market_patches_XPD: Tensor, present_XN: Tensor) -> Tensor:
        """tokens_XMD, the latents of the assets and, last, of the market, from the patches of both."""
        assets_XND = self.pool(patches_XNPD.flatten(-2))
        market_XD = self.market_pool(market_patches_XPD.flatten(-2))
        tokens_XMD = torch.cat([assets_XND, market_XD.unsqueeze(-2)], dim=-2)
        mask_X11M = F.pad(present_XN, (0, 1), value=True)[..., None, None, :]
        for block in self.asset_blocks:
            tokens_XMD = block(tokens_XMD, mask_X11M)
        return normalize(tokens_XMD)

    def forward(
        self, features_XNTF: Tensor, observed_XNT: Tensor, market_XTQ: Tensor, present_XN: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            features_XNTF: normalised channels, 0 where not observed.
            observed_XNT: bool.
            market_XTQ: channels of the market as a whole; its token alone is made of them.
            present_XN: bool; an absent asset is not looked at, and its latent means nothing.

        Returns:
            assets_XND and market_XD.
        """
        patches_XNPD = self.encode_patches(features_XNTF, observed_XNT)
        tokens_XMD = self.combine(patches_XNPD, self.encode_market_patches(market_XTQ), present_XN)
        return tokens_XMD[..., :-1, :], tokens_XMD[..., -1, :]

    def _over_time(self, tokens_XPD: Tensor) -> Tensor:
        for block in self.time_blocks:
            tokens_XPD = block(tokens_XPD)
        return self.time_norm(tokens_XPD)


# Of each of SCALARS in the distance of two portfolios: so that it is that of holdings, volatilities and costs in equal parts,
# each in its own standard deviation (non-negative least squares on random portfolios; docs/results/decisions.md).
_SCALAR_WEIGHTS = (0.1, 0.1, 1.0, 0.2, 1.2, 0.8, 0.5, 8.0, 1.5, 0.5, 1.5)
_HOLDINGS_WEIGHT = 2.0
_FLOWS = ("step_cost", "step_turnover")


class PortfolioEncoder(nn.Module):
    """The state of a portfolio as a point: two portfolios are as far apart as their holdings, their risk and their costs are.

    Holdings are carried by the latents of their assets, whitened over the assets of the date, so that different assets are
    orthogonal as far as the width allows: with more assets than dimensions distances are those of a projection. The scalars
    have directions of their own. Nothing is learned here but the latents: what the state of a portfolio is, is known.
    """

    weights_G: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.register_buffer("weights_G", torch.from_numpy(np.array(_SCALAR_WEIGHTS)).float(), persistent=False)
        self.dim, self.carried = config.dim, max(config.dim - len(SCALARS), config.dim // 2)
        self.scalars = [place % config.dim for place in range(-len(SCALARS), 0)]

    def carriers(self, assets_XND: Tensor, present_XN: Tensor) -> Tensor:
        """carriers_XNE: by them the holdings of the assets that are present take up the first dimensions of a latent."""
        return whitened(assets_XND.detach()[..., : self.carried], present_XN)

    def forward(self, holdings_XN: Tensor, scalars_XG: Tensor, carriers_XNE: Tensor) -> Tensor:
        """portfolio_XD of holdings (signed shares of wealth) and `SCALARS`."""
        carriers_XNE = carriers_XNE.expand(*holdings_XN.shape, -1)
        held_XE = _HOLDINGS_WEIGHT * torch.einsum("...n,...ne->...e", holdings_XN, carriers_XNE)
        latents_XD = F.pad(held_XE, (0, self.dim - self.carried)).to(scalars_XG.dtype)
        places_G = torch.tensor(self.scalars, device=latents_XD.device)
        return latents_XD.index_add(-1, places_G, scalars_XG * self.weights_G.to(scalars_XG.dtype))

    def position(self, latents_XD: Tensor) -> Tensor:
        """What latents say of where a portfolio is, without what it took to get there: costs and turnover."""
        flows = [self.scalars[SCALARS.index(name)] for name in _FLOWS]
        return latents_XD.index_fill(-1, torch.tensor(flows, device=latents_XD.device), 0.0)


def whitened(latents_XNE: Tensor, present_XN: Tensor) -> Tensor:
    """Rows that are orthonormal where there are no more assets than dimensions, and else have an identity covariance; 0 for
    absent assets. The polar factor of the latents: of all such rows those nearest to them."""
    present_XN1 = present_XN.unsqueeze(-1).to(latents_XNE.dtype)
    latents_XNE = latents_XNE * present_XN1
    gram_XEE = latents_XNE.mT @ latents_XNE
    values_XE, vectors_XEE = torch.linalg.eigh(gram_XEE.double().nan_to_num())
    floor_X1 = (_LEAST_SHARE * values_XE.sum(-1, keepdim=True)).clamp(min=1e-12)
    root_XEE = (vectors_XEE * (values_XE.clamp(min=0) + floor_X1).rsqrt().unsqueeze(-2)) @ vectors_XEE.mT
    scale_X11 = (present_XN1.sum(-2, keepdim=True) / latents_XNE.shape[-1]).clamp(min=1).sqrt()
    return scale_X11 * (latents_XNE @ root_XEE.to(latents_XNE.dtype))


_LEAST_SHARE = 1e-5  # of the latents' sum of squares: what assets differ by less does not tell them apart


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


def masked_patch_error(
    encoder: ContextEncoder,
    predictor: MaskedPatchPredictor,
    features_XTF: Tensor,
    observed_XT: Tensor,
    target_XPD: Tensor,
    ratio: float,
) -> Tensor:
    """Mean absolute error of the predicted latents of masked patches, [X] (TS-JEPA, section 3).

    Args:
        target_XPD: patches of the whole windows, by the teacher or by the encoder itself; compared after a LayerNorm
            without parameters.
    """
    shape, patches = tuple(target_XPD.shape[:-2]), target_XPD.shape[-2]
    visible_XV, masked_XU = draw_masks(shape, patches, ratio, features_XTF.device)
    visible_XVD = encoder.encode_patches(features_XTF, observed_XT, visible_XV)
    predicted_XUD = predictor(visible_XVD, visible_XV, masked_XU)
    target_XUD = gather_patches(normalize(target_XPD), masked_XU)
    return (predicted_XUD - target_XUD).abs().mean((-1, -2))


def gather_patches(tokens_XPD: Tensor, index_XV: Tensor) -> Tensor:
    """Row b of the result is x[b, index[b]]; one batched gather (TS-JEPA's own code mixes the samples up)."""
    return torch.take_along_dim(tokens_XPD, index_XV.unsqueeze(-1), dim=-2)


def draw_masks(shape: tuple[int, ...], patches: int, ratio: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Visible and masked patch numbers, [*shape, V] and [*shape, U]: U = int(ratio * patches), anew for every sample.

    The first number of `shape` counts this process's rows of the global batch.
    """
    masked = int(ratio * patches)
    order_YP = draw_rows(torch.rand, *shape, patches, device=device).argsort(dim=-1)
    return order_YP[..., masked:], order_YP[..., :masked]
