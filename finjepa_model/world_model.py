"""FinJEPA: a joint-embedding predictive world model of the market and of the portfolio that is held in it.

Shapes: B decision dates, S steps (W context steps, then K that are predicted), N assets, M = N + 1 tokens, T sessions,
F channels, C candidates, H horizon, D width, G portfolio scalars.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from finjepa_model.actions import ActionEmbedder, PortfolioAction
from finjepa_model.config import FinJEPAConfig
from finjepa_model.encoder import (
    ContextEncoder,
    MaskedPatchPredictor,
    PortfolioEncoder,
    draw_masks,
    gather_patches,
    normalize,
)
from finjepa_model.heads import Heads
from finjepa_model.observation import MarketBatch, Observation
from finjepa_model.portfolio import PortfolioState
from finjepa_model.predictor import MarketMemory, Predictor
from finjepa_model.regularizers import InverseDynamics, Projector, SIGReg, variance_covariance


@dataclass(frozen=True)
class PortfolioPath:
    """K + 1 states of a portfolio and the K actions between them, as the world model sees them."""

    holdings_BKN: Tensor  # K + 1 states: signed shares of wealth, after drift and before the trade
    signals_BKN: Tensor
    scalars_BKG: Tensor
    actions: PortfolioAction  # [B, K, ...]


class FinJEPA(nn.Module):
    """The world model of design section 4.

    Its `loss` is teacher-forced and K-step autoregressive prediction of target latents (JEPA-WMs, section 3), masked-patch
    prediction (TS-JEPA), SIGReg on the online market embeddings (LeJEPA), inverse dynamics and variance-covariance on the
    portfolio latents (EB-JEPA), and read-outs of detached latents.
    """

    def __init__(self, config: FinJEPAConfig):
        super().__init__()
        self.config = config
        model = config.model
        self.encoder = ContextEncoder(model)
        self.portfolio_encoder = PortfolioEncoder(model)
        self.action_embedder = ActionEmbedder(model.dim)
        self.predictor = Predictor(model)
        self.patch_predictor = MaskedPatchPredictor(model)
        self.asset_projector = Projector(model.dim, model.projector_dim)
        self.market_projector = Projector(model.dim, model.projector_dim)
        self.inverse_dynamics = InverseDynamics(model.dim)
        self.heads = Heads(model.dim)
        self.sigreg = SIGReg(config.loss.sigreg_slices)
        # without a teacher the target is the encoder itself, with its gradient (LeJEPA)
        self.has_teacher = config.loss.recipe != "sigreg"
        if self.has_teacher:
            self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_portfolio_encoder = copy.deepcopy(self.portfolio_encoder).requires_grad_(False)

    # -- acting ---------------------------------------------------------------------------------------------------------

    def encode(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Latents of the market at every step: assets_BSND and market_BSD."""
        tokens_BSMD = self._tokens(self.encoder, observation)
        return tokens_BSMD[..., :-1, :], tokens_BSMD[..., -1, :]

    def encode_portfolio(
        self, holdings_XN: Tensor, signals_XN: Tensor, scalars_XG: Tensor, assets_XND: Tensor, present_XN: Tensor
    ) -> Tensor:
        """portfolio_XD of a portfolio state that stands among assets with these latents."""
        return self.portfolio_encoder(holdings_XN, signals_XN, scalars_XG, assets_XND.detach(), present_XN)

    def predict(self, tokens_BSMD: Tensor, present_BN: Tensor) -> tuple[Tensor, MarketMemory]:
        """Market latents one step ahead of every step; see `Predictor.market`."""
        return self.predictor.market(tokens_BSMD, present_BN)

    def rollout(self, tokens_BSMD: Tensor, present_BN: Tensor, steps: int, truncate: bool = False) -> Tensor:
        """Predict the market autoregressively.

        Args:
            tokens_BSMD: asset latents and, last, the market latent of the context.
            truncate: let no gradient flow from one step into the one before.

        Returns:
            predicted_BHMD, H = `steps`.
        """
        context, predicted = tokens_BSMD, []
        for _ in range(steps):
            following_BMD = self.predictor.market(context, present_BN)[0][:, -1]
            predicted.append(following_BMD)
            context = torch.cat([context, (following_BMD.detach() if truncate else following_BMD).unsqueeze(1)], dim=1)
        return torch.stack(predicted, dim=1)

    @torch.no_grad()
    def imagine(self, observation: Observation, horizon: int) -> "Imagination":
        """Roll the market out once for B decisions; candidates then roll only their portfolio token."""
        tokens_BSMD = self._tokens(self.encoder, observation)
        if horizon > 1:
            ahead_BHMD = self.rollout(tokens_BSMD, observation.present_BN, horizon - 1)
            tokens_BSMD = torch.cat([tokens_BSMD, ahead_BHMD], dim=1)
        _, memory = self.predictor.market(tokens_BSMD, observation.present_BN)
        now = observation.steps - 1
        assets_BHND, market_BHD = tokens_BSMD[:, now:, :-1], tokens_BSMD[:, now:, -1]
        asset_scale_B1N, market_scale_B1 = self._scales(observation, slice(now, now + 1))
        mean_BHN, log_std_BHN = self.heads.asset(self.heads.asset_inputs(assets_BHND, market_BHD))
        _, market_log_std_BH = self.heads.market(market_BHD)
        return Imagination(
            mean_BHN=mean_BHN * asset_scale_B1N,
            volatility_BHN=log_std_BHN.exp() * asset_scale_B1N,
            market_volatility_BH=market_log_std_BH.exp() * market_scale_B1,
            beta_BN=observation.beta_BSN[:, now],
            present_BN=observation.present_BN,
            assets_BHND=assets_BHND,
            first_step=now,
            memory=memory,
            model=self,
        )

    # -- learning -------------------------------------------------------------------------------------------------------

    def loss(self, batch: MarketBatch, path: PortfolioPath, seed: int) -> dict[str, Tensor]:
        """Every term of the objective, and their weighted sum under "loss".

        Args:
            batch: W + K steps of the market.
            path: a portfolio that was held over the last K + 1 of them.
            seed: of SIGReg's directions; another one at every step, the same on every rank.
        """
        weights, observation = self.config.loss, batch.observation
        tokens_BSMD = self._tokens(self.encoder, observation)
        target_BSMD = self._target_tokens(observation, tokens_BSMD)
        present_BM = F.pad(observation.present_BN, (0, 1), value=True)

        predicted_BSMD, memory = self.predictor.market(tokens_BSMD, observation.present_BN)
        context = observation.steps - weights.rollout_steps
        ahead_BKMD = self.rollout(
            tokens_BSMD[:, :context], observation.present_BN, weights.rollout_steps, weights.truncate_rollout
        )
        terms = {
            "prediction": _masked_mse(predicted_BSMD[:, :-1], target_BSMD[:, 1:], present_BM),
            "rollout": _masked_mse(ahead_BKMD, target_BSMD[:, context:], present_BM),
            "masked_patch": self._masked_patch_loss(observation),
        }
        if weights.recipe != "ema":
            terms["sigreg"] = self._sigreg_loss(tokens_BSMD, observation.present_BN, seed)
        terms |= self._portfolio_losses(tokens_BSMD, memory, observation, path)
        terms["heads"] = self._head_loss(tokens_BSMD, predicted_BSMD, batch) + terms.pop("portfolio_head")
        for name in ("prediction", "rollout"):
            terms[name] = terms[name] + terms.pop(f"portfolio_{name}")
        terms["loss"] = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
        return terms

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Exponential moving average of the online encoders: teacher = momentum * teacher + (1 - momentum) * student."""
        pairs: list[tuple[nn.Module, nn.Module]] = [(self.target_portfolio_encoder, self.portfolio_encoder)]
        if self.has_teacher:
            pairs.append((self.target_encoder, self.encoder))
        for teacher, student in pairs:
            for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                old.lerp_(new, 1 - momentum)

    def _tokens(self, encoder: ContextEncoder, observation: Observation) -> Tensor:
        present_BSN = observation.present_BN.unsqueeze(1).expand(-1, observation.steps, -1)
        assets_BSND, market_BSD = encoder(observation.features_BSNTF, observation.observed_BSNT, present_BSN)
        return torch.cat([assets_BSND, market_BSD.unsqueeze(-2)], dim=-2)

    def _target_tokens(self, observation: Observation, tokens_BSMD: Tensor) -> Tensor:
        if not self.has_teacher:
            return tokens_BSMD
        with torch.no_grad():
            return self._tokens(self.target_encoder, observation)

    def _masked_patch_loss(self, observation: Observation) -> Tensor:
        """L1 between predicted and target latents of masked patches (TS-JEPA), at one step of each sample."""
        features_YTF = observation.features_BSNTF[:, -1].flatten(0, 1)
        observed_YT = observation.observed_BSNT[:, -1].flatten(0, 1)
        visible_YV, masked_YU = draw_masks(
            features_YTF.shape[0], self.config.model.patches, self.config.loss.mask_ratio, features_YTF.device
        )
        visible_YVD = self.encoder.encode_patches(features_YTF, observed_YT, visible_YV)
        predicted_YUD = self.patch_predictor(visible_YVD, visible_YV, masked_YU)
        if self.has_teacher:
            with torch.no_grad():
                target_YPD = self.target_encoder.encode_patches(features_YTF, observed_YT)
        else:
            target_YPD = self.encoder.encode_patches(features_YTF, observed_YT)
        target_YUD = gather_patches(normalize(target_YPD), masked_YU)
        present_Y = observation.present_BN.flatten().to(predicted_YUD.dtype)
        error_Y = (predicted_YUD - target_YUD).abs().mean((-1, -2))
        return (error_Y * present_Y).sum() / present_Y.sum().clamp(min=1)

    def _sigreg_loss(self, tokens_BSMD: Tensor, present_BN: Tensor, seed: int) -> Tensor:
        """SIGReg at each time index over the batch, of the assets and of the market."""
        assets_SYD = tokens_BSMD[..., :-1, :].transpose(1, 2)[present_BN].transpose(0, 1)  # [S, samples, D]
        market_SBD = tokens_BSMD[..., -1, :].transpose(0, 1)
        total = tokens_BSMD.new_zeros(())
        for samples_SND, projector in ((assets_SYD, self.asset_projector), (market_SBD, self.market_projector)):
            projected_SND = projector(samples_SND.flatten(0, 1)).unflatten(0, samples_SND.shape[:2])
            total = total + self.sigreg(projected_SND, seed)
        return total

    def _portfolio_losses(
        self, tokens_BSMD: Tensor, memory: MarketMemory, observation: Observation, path: PortfolioPath
    ) -> dict[str, Tensor]:
        steps = self.config.loss.rollout_steps
        first_step = observation.steps - 1 - steps
        assets_BKND = tokens_BSMD[:, first_step:, :-1].detach()
        present_BKN = observation.present_BN.unsqueeze(1).expand(-1, steps + 1, -1)
        seen = (path.holdings_BKN, path.signals_BKN, path.scalars_BKG, assets_BKND, present_BKN)
        latents_BKD = self.portfolio_encoder(*seen)
        with torch.no_grad():
            target_BKD = self.target_portfolio_encoder(*seen)
        condition_BKD = self.action_embedder(
            path.actions, path.holdings_BKN[:, :-1], assets_BKND[:, :-1], present_BKN[:, :-1]
        )

        one_ahead_BKD = self.predictor.portfolio(latents_BKD[:, None, :-1], condition_BKD[:, None], first_step, memory)[
            0
        ].squeeze(1)
        token_BD, past, ahead = latents_BKD[:, 0], None, []
        for k in range(steps):
            following_B1D, past = self.predictor.portfolio(
                token_BD[:, None, None], condition_BKD[:, None, k : k + 1], first_step + k, memory, past
            )
            ahead.append(following_B1D[:, 0, 0])
            token_BD = ahead[-1].detach() if self.config.loss.truncate_rollout else ahead[-1]

        variance, covariance = variance_covariance(latents_BKD.flatten(0, 1))
        return {
            "portfolio_prediction": F.mse_loss(one_ahead_BKD, target_BKD[:, 1:]),
            "portfolio_rollout": F.mse_loss(torch.stack(ahead, dim=1), target_BKD[:, 1:]),
            "inverse_dynamics": self.inverse_dynamics.loss(
                latents_BKD[:, :-1], latents_BKD[:, 1:], assets_BKND[:, :-1], path.actions, present_BKN[:, :-1]
            ),
            "variance": variance,
            "covariance": covariance,
            "portfolio_head": F.mse_loss(self.heads.portfolio(latents_BKD.detach()), path.scalars_BKG),
        }

    def _head_loss(self, tokens_BSMD: Tensor, predicted_BSMD: Tensor, batch: MarketBatch) -> Tensor:
        """Likelihood of the next step's returns, from encoded and from predicted latents, on which the heads are used."""
        observation = batch.observation
        asset_scale_BSN, market_scale_BS = self._scales(observation, slice(None))
        target_BSN = batch.step_return_BSN / asset_scale_BSN
        market_target_BS = batch.market_step_return_BS / market_scale_BS
        valid_BSN = (batch.step_return_valid_BSN & observation.present_BN.unsqueeze(1)).to(target_BSN.dtype)
        total = target_BSN.new_zeros(())
        for tokens, steps in ((tokens_BSMD, slice(None)), (predicted_BSMD[:, :-1], slice(1, None))):
            assets, market = tokens[..., :-1, :], tokens[..., -1, :]
            total = total + self.heads.asset.loss(
                self.heads.asset_inputs(assets, market), target_BSN[:, steps], valid_BSN[:, steps]
            )
            everywhere = torch.ones_like(market_target_BS[:, steps])
            total = total + self.heads.market.loss(market, market_target_BS[:, steps], everywhere)
        return total

    def _scales(self, observation: Observation, steps: slice) -> tuple[Tensor, Tensor]:
        """Trailing volatility of a decision step, of assets and of the market proxy."""
        root = self.config.model.stride**0.5
        return observation.volatility_BSN[:, steps] * root, observation.market_volatility_BS[:, steps] * root

    # -- keeping --------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json` into a folder."""
        from finjepa_model.checkpoint import save_model

        save_model(self, Path(folder))

    @classmethod
    def from_pretrained(cls, dir_or_repo: str | Path, revision: str | None = None) -> "FinJEPA":
        """Load a world model from a folder, or else from a repository on the Hugging Face Hub, in evaluation mode.

        Raises:
            FinJEPAError: if there is no such folder or repository, or if the checkpoint is damaged.
        """
        from finjepa_model.checkpoint import load_model

        return load_model(cls, dir_or_repo, revision)


@dataclass(frozen=True)
class Imagination:
    """The market, rolled out once for B decisions; h = 0 is the decision to be made now."""

    mean_BHN: Tensor  # expected simple return over each decision step
    volatility_BHN: Tensor  # its standard deviation
    market_volatility_BH: Tensor
    beta_BN: Tensor
    present_BN: Tensor  # bool
    assets_BHND: Tensor
    first_step: int
    memory: MarketMemory
    model: FinJEPA

    def date(self, b: int) -> "Imagination":
        """The decision b alone, with a batch of one."""
        one = slice(b, b + 1)
        memory = MarketMemory(
            [keys[one] for keys in self.memory.keys_XHJE],
            [values[one] for values in self.memory.values_XHJE],
            self.memory.step_J,
            self.memory.present_XJ[one],
        )
        return replace(
            self,
            mean_BHN=self.mean_BHN[one],
            volatility_BHN=self.volatility_BHN[one],
            market_volatility_BH=self.market_volatility_BH[one],
            beta_BN=self.beta_BN[one],
            present_BN=self.present_BN[one],
            assets_BHND=self.assets_BHND[one],
            memory=memory,
        )

    @torch.no_grad()
    def portfolio_path(self, state: PortfolioState, held_BCHN: Tensor, actions: PortfolioAction) -> Tensor:
        """Predicted portfolio latents after each step.

        Args:
            state: the portfolio now, batch [B].
            held_BCHN: exact holdings before each trade; [:, :, 0] is what `state` holds.
            actions: candidates, [B, C, H, ...].

        Returns:
            latents_BCHD.
        """
        dtype = self.assets_BHND.dtype
        actions, held_BCHN = actions.map(lambda x: x.to(dtype)), held_BCHN.to(dtype)
        candidates, horizon = held_BCHN.shape[1:3]
        state = state.map(lambda x: x.to(dtype))
        token_BD = self.encode_portfolio(
            state.holdings_XN.unsqueeze(1), state.signals_XN.unsqueeze(1), state.scalars(self.beta_BN).unsqueeze(1)
        ).squeeze(1)
        present_B11N = self.present_BN[:, None, None]
        condition_BCHD = self.model.action_embedder(actions, held_BCHN, self.assets_BHND.unsqueeze(1), present_B11N)
        token_BC1D, past, path = token_BD[:, None, None].expand(-1, candidates, -1, -1), None, []
        for h in range(horizon):
            token_BC1D, past = self.model.predictor.portfolio(
                token_BC1D, condition_BCHD[:, :, h : h + 1], self.first_step + h, self.memory, past
            )
            path.append(token_BC1D)
        return torch.cat(path, dim=2)

    @torch.no_grad()
    def encode_portfolio(self, holdings_BCN: Tensor, signals_BCN: Tensor, scalars_BCG: Tensor) -> Tensor:
        """Portfolio latents, [B, C, D], of portfolio states in the market of now."""
        dtype = self.assets_BHND.dtype
        return self.model.encode_portfolio(
            holdings_BCN.to(dtype),
            signals_BCN.to(dtype),
            scalars_BCG.to(dtype),
            self.assets_BHND[:, :1],
            self.present_BN.unsqueeze(1),
        )


def _masked_mse(predicted_BSMD: Tensor, target_BSMD: Tensor, present_BM: Tensor) -> Tensor:
    """Mean over present tokens of the squared error."""
    error_BSM = (predicted_BSMD - target_BSMD).square().mean(-1)
    mask_BSM = present_BM.unsqueeze(1).expand_as(error_BSM).to(error_BSM.dtype)
    return (error_BSM * mask_BSM).sum() / mask_BSM.sum()
