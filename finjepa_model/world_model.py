"""FinJEPA: a joint-embedding predictive world model of the market and of the portfolio that is held in it.

Shapes: B decision dates, S steps (W context steps, then K that are predicted), N assets, M = N + 1 tokens, T sessions,
F channels, C candidates, H horizon, D width, G portfolio scalars.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from finjepa_model.actions import ActionEmbedder, PortfolioAction
from finjepa_model.checkpoint import load_model, save_model
from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.batches import MarketBatch, Observation, Windows
from finjepa_model.nn.encoder import ContextEncoder, MaskedPatchPredictor, PortfolioEncoder
from finjepa_model.nn.losses import InverseDynamics, SIGReg, objective
from finjepa_model.nn.predictor import MarketMemory, Predictor
from finjepa_model.nn.readout import ReturnReadout
from finjepa_model.nn.risk import RiskForecast, RiskModel
from finjepa_model.planning.imagination import Rollout, portfolio_variance
from finjepa_model.portfolio import PortfolioState, scalars_of


@dataclass(frozen=True)
class PortfolioPath:
    """K + 1 states of a portfolio and the K actions between them, as the world model sees them."""

    holdings_BKN: Tensor  # K + 1 states: signed shares of wealth, after drift and before the trade
    scalars_BKG: Tensor
    actions: PortfolioAction  # [B, K, ...]
    traded_BKN: Tensor  # K states right after the trades
    traded_scalars_BKG: Tensor


class WorldModel(nn.Module):
    """The world model: it learns by `finjepa_model.nn.losses.objective`, and planners act in what it imagines (`imagine`)."""

    def __init__(self, config: FinJEPAConfig):
        super().__init__()
        self.config = config
        model = config.model
        self.encoder = ContextEncoder(model)
        self.portfolio_encoder = PortfolioEncoder(model)
        self.action_embedder = ActionEmbedder(model.dim)
        self.predictor = Predictor(model)
        self.patch_predictor = MaskedPatchPredictor(model)
        self.inverse_dynamics = InverseDynamics(model.dim)
        self.readout = ReturnReadout(len(model.channels), model.dim)
        self.sigreg = SIGReg(config.loss.sigreg_slices)
        # without a teacher the target is the encoder itself; see `objective` for why it carries no gradient
        self.has_teacher = config.loss.recipe in ("ema", "both")
        if self.has_teacher:
            self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        # last, so that the world model begins the same with and without it
        self.risk = RiskModel(len(model.channels), model.dim, model.factors)
        self.td = None
        if config.td.enabled:
            # here: the branch takes seconds to load, and the ids of other trainings leave its code out
            from finjepa_model.td.branch import TDBranch

            self.td = TDBranch(config)

    @property
    def teacher(self) -> ContextEncoder:
        """The encoder whose latents are predicted."""
        return self.target_encoder if self.has_teacher else self.encoder

    # -- acting ---------------------------------------------------------------------------------------------------------

    def encode(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Latents of the market at every step: assets_BSND and market_BSD."""
        tokens_BSMD = self.see(self.encoder, observation)[0]
        return tokens_BSMD[..., :-1, :], tokens_BSMD[..., -1, :]

    def predict(self, tokens_BSMD: Tensor, present_BN: Tensor) -> tuple[Tensor, MarketMemory]:
        """Market latents one step ahead of every step; see `Predictor.market`."""
        return self.predictor.market(tokens_BSMD, present_BN)

    def rollout(self, tokens_BSMD: Tensor, present_BN: Tensor, steps: int) -> Tensor:
        """Predict the market autoregressively; no gradient flows from one step into the one before (TBPTT-1, JEPA-WMs).

        Args:
            tokens_BSMD: asset latents and, last, the market latent of the context.

        Returns:
            predicted_BHMD, H = `steps`.
        """
        context, predicted = tokens_BSMD, []
        for _ in range(steps):
            following_BMD = self.predictor.market(context, present_BN)[0][:, -1]
            predicted.append(following_BMD)
            context = torch.cat([context, following_BMD.detach().unsqueeze(1)], dim=1)
        return torch.stack(predicted, dim=1)

    @torch.no_grad()
    def imagine(self, observation: Observation, horizon: int) -> "Imagination":
        """Roll the market out once for B decisions; candidates then roll only their portfolio token.

        Args:
            observation: with the returns of the past (`observe`), for the forecast of risk.
        """
        tokens_BSMD = self.see(self.encoder, observation)[0]
        if horizon > 1:
            ahead_BHMD = self.rollout(tokens_BSMD, observation.present_BN, horizon - 1)
            tokens_BSMD = torch.cat([tokens_BSMD, ahead_BHMD], dim=1)
        _, memory = self.predictor.market(tokens_BSMD, observation.present_BN)
        now = observation.steps - 1
        assets_BHND, market_BHD = tokens_BSMD[:, now:, :-1], tokens_BSMD[:, now:, -1]
        mean_BHN = self.expected_returns(observation, assets_BHND[:, 0], horizon)
        risk = self.risk(observation, assets_BHND[:, 0], market_BHD[:, 0])
        return Imagination(
            mean_BHN=mean_BHN,
            covariance_BHMM=risk.step_covariance(self.config.model.stride, horizon),
            beta_BN=observation.beta_BSN[:, now],
            present_BN=observation.present_BN,
            assets_BHND=assets_BHND,
            carriers_BNE=self.portfolio_encoder.carriers(assets_BHND[:, 0], observation.present_BN),
            tokens_BMD=tokens_BSMD[:, now],
            first_step=now,
            memory=memory,
            model=self,
        )

    def expected_returns(self, observation: Observation, assets_BND: Tensor, steps: int) -> Tensor:
        """mean_BHN, simple returns over each of the next decision steps, from the latents of an observation's last step."""
        scale_BN = observation.volatility_BSN[:, -1] * self.config.model.stride**0.5
        inputs_BNZ = self.readout.inputs(observation.features_BSNTF[:, -1], assets_BND)
        return self.readout(inputs_BNZ, scale_BN, observation.present_BN, steps)

    @torch.no_grad()
    def forecast_risk(self, observation: Observation) -> RiskForecast:
        """Volatilities, covariance and quantiles of returns after the last step of an observation that carries the past."""
        assets_BSND, market_BSD = self.encode(observation.step(-1))
        return self.risk(observation, assets_BSND[:, -1], market_BSD[:, -1])

    # -- learning -------------------------------------------------------------------------------------------------------

    def loss(self, batch: MarketBatch, path: PortfolioPath, seed: int) -> dict[str, Tensor]:
        """See `finjepa_model.nn.losses.objective`."""
        return objective(self, batch, path, seed)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Exponential moving average of the online encoders: teacher = momentum * teacher + (1 - momentum) * student."""
        if self.has_teacher:
            for old, new in zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True):
                old.lerp_(new, 1 - momentum)

    def see(self, encoder: ContextEncoder, observation: Windows) -> tuple[Tensor, Tensor]:
        """tokens_BSMD, the latents of the assets and, last, of the market; and patches_BSNPD, what they are made of."""
        present_BSN = observation.present_BN.unsqueeze(1).expand(-1, observation.steps, -1)
        patches_BSNPD = encoder.encode_patches(observation.features_BSNTF, observation.observed_BSNT)
        market_patches_BSPD = encoder.encode_market_patches(observation.market_BSTQ)
        return encoder.combine(patches_BSNPD, market_patches_BSPD, present_BSN), patches_BSNPD

    # -- keeping --------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json` into a folder."""
        save_model(self, Path(folder))

    @classmethod
    def from_pretrained(cls, dir_or_repo: str | Path, revision: str | None = None) -> Self:
        """Load a world model from a folder, or else from a repository on the Hugging Face Hub, in evaluation mode.

        Raises:
            FinJEPAError: if there is no such folder or repository, or if the checkpoint is damaged.
        """
        return load_model(cls, dir_or_repo, revision)


@dataclass(frozen=True)
class Imagination:
    """The market, rolled out once for B decisions; h = 0 is the decision to be made now."""

    mean_BHN: Tensor  # expected simple return over each decision step
    covariance_BHMM: Tensor  # of the assets and, last, of the market proxy
    beta_BN: Tensor
    present_BN: Tensor  # bool
    assets_BHND: Tensor
    carriers_BNE: Tensor  # of holdings, in portfolio latents
    tokens_BMD: Tensor  # latents of the assets and, last, of the market, now
    first_step: int
    memory: MarketMemory
    model: WorldModel

    def take(self, one: slice | Tensor) -> "Imagination":
        """Some of the decisions, by their numbers; one may be taken more than once."""
        taken = {name: value[one] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **taken, memory=self.memory.take(one))

    def volatility(self, holdings_BCN: Tensor, hedge_BC: Tensor) -> Tensor:
        """volatility_BC of portfolios, daily, over the next decision step."""
        covariance_BMM = self.covariance_BHMM[:, 0]
        variance_BC = portfolio_variance(holdings_BCN.to(covariance_BMM), hedge_BC.to(covariance_BMM), covariance_BMM)
        return (variance_BC.clamp(min=1e-16) / self.model.config.model.stride).sqrt()

    def portfolio_path(self, state: PortfolioState, planned: Rollout) -> Tensor:
        """Predicted portfolio latents after each step.

        Args:
            state: the portfolio now, batch [B].
            planned: what candidates trade, [B, C, H, ...].

        Returns:
            latents_BCHD.
        """
        dtype, beta_B1N = self.assets_BHND.dtype, self.beta_BN.unsqueeze(1)
        state = state.map(lambda x: x.to(dtype).unsqueeze(1))
        drawdown_B1 = state.wealth_X / state.peak_X - 1
        hedge_B1 = state.hedge_X / state.wealth_X
        scalars_B1G = state.scalars(beta_B1N, self.volatility(state.holdings_XN, hedge_B1))
        token_B1D = self.encode_portfolio(state.holdings_XN, scalars_B1G)
        present_B11N, candidates = self.present_BN[:, None, None], planned.hedge_BCH.shape[1]
        actions = planned.actions.map(lambda x: x.to(dtype))
        condition_BCHD = self.model.action_embedder(
            actions, planned.held_BCHN.to(dtype), self.assets_BHND.unsqueeze(1), present_B11N
        )
        token_BC1D, past, path = token_B1D[:, :, None].expand(-1, candidates, -1, -1), None, []
        for h in range(planned.hedge_BCH.shape[2]):
            holdings_BCN, hedge_BC = planned.holdings_BCHN[:, :, h].to(dtype), planned.hedge_BCH[..., h].to(dtype)
            scalars_BCG = scalars_of(
                holdings_BCN,
                hedge_BC,
                beta_B1N,
                self.volatility(holdings_BCN, hedge_BC),
                cost_X=planned.cost_BCH[..., h],
                turnover_X=planned.turnover_BCH[..., h],
                drawdown_X=drawdown_B1,
            )
            traded_BC1D = self.encode_portfolio(holdings_BCN, scalars_BCG).unsqueeze(2)
            token_BC1D, past = self.model.predictor.portfolio(
                token_BC1D, condition_BCHD[:, :, h : h + 1], traded_BC1D, self.first_step + h, self.memory, past
            )
            path.append(token_BC1D)
        return torch.cat(path, dim=2)

    def encode_portfolio(self, holdings_BCN: Tensor, scalars_BCG: Tensor) -> Tensor:
        """Portfolio latents, [B, C, D], of portfolio states in the market of now."""
        dtype, carriers_B1NE = self.carriers_BNE.dtype, self.carriers_BNE.unsqueeze(1)
        return self.model.portfolio_encoder(holdings_BCN.to(dtype), scalars_BCG.to(dtype), carriers_B1NE)

    def position(self, latents_XD: Tensor) -> Tensor:
        """See `PortfolioEncoder.position`."""
        return self.model.portfolio_encoder.position(latents_XD)
