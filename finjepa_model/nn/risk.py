"""Forecasts of risk: volatilities over 5, 21 and 63 sessions, their joint covariance, and quantiles of returns.

An asset's log volatility is the level of its date plus its distance from that level. There are only hundreds of dates, so the
level is a regression on eight numbers: the mean log realised volatility of the assets and of the market over four windows
(HAR, Corsi 2009, with the market). There are many assets, so the distance is the average of a linear branch on simple inputs and
of a network on the latents of the encoder, whose gradients ground the encoder. The covariance is D C D: D from these
volatilities, C from `finjepa_model.nn.covariance`. Everything that is not the network is fitted in closed form
(`finjepa_model.training.risk_fit`).

Shapes: X any batch dimensions, B dates, N assets, M = N + 1 (the market proxy last), H decision steps, T sessions of a window,
F channels, R sessions of the past, D width, L factors, V horizons, Z simple inputs, Y horizons of returns, Q quantile levels.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from finjepa_model.data.batches import Observation, recency
from finjepa_model.nn.covariance import (
    ESTIMATORS,
    LEARNED,
    CorrelationMix,
    estimate,
    scaled_by_local_volatility,
    with_diagonal,
)
from finjepa_model.nn.distributed import masked_mean

HORIZONS = (5, 21, 63)  # sessions over which volatility is forecast
LOOKBACKS = (5, 21, 63, 252)  # sessions over which it was realised
RETURN_HORIZONS = (1, 5, 21)  # sessions, of quantiles; each reads the volatility of the horizon below
_VOLATILITY_OF = (0, 0, 1)  # place in HORIZONS
LEAST_VOLATILITY = 1e-3  # a day: below it a price is stale
LEVELS = tuple(round(0.005 * k, 3) for k in range(1, 200))  # of the quantiles that are stored
_FAST_DECAY = 0.6  # of channel means that remember a few sessions
_LEAST_GAIN = 0.25  # of the variance of the first decision step, in each later one
_MOST_DISTANCE = math.log(4.0)  # of a forecast from what was realised, whatever was fitted


def log_realised(past_XR: Tensor, sessions: int) -> Tensor:
    """log of the root mean square daily return over the last `sessions`; NaN returns are not counted.

    Like the loss of Patton (2011) it takes the mean return as 0.
    """
    recent_XR = past_XR[..., -sessions:]
    known_XR = recent_XR.isfinite()
    mean_X = torch.where(known_XR, recent_XR, 0.0).square().sum(-1) / known_XR.sum(-1).clamp(min=1)
    return 0.5 * mean_X.clamp(min=LEAST_VOLATILITY**2).log()


def realised_after(after_XR: Tensor) -> Tensor:
    """log realised volatility_XV over HORIZONS after a date; NaN unless two thirds of the sessions, and the last, are known."""
    found = []
    for horizon in HORIZONS:
        known_XR = after_XR[..., :horizon].isfinite()
        enough_X = (known_XR.sum(-1) >= 2 * horizon / 3) & known_XR[..., -1]
        found.append(torch.where(enough_X, log_realised(after_XR[..., :horizon], horizon), torch.nan))
    return torch.stack(found, dim=-1)


@dataclass(frozen=True)
class RiskInputs:
    """What the closed forms read of B dates; everything was known at their close."""

    simple_BNZ: Tensor  # four log realised volatilities, then channel means with a slow and with a fast decay
    market_BK: Tensor  # four log realised volatilities of the market proxy
    present_BN: Tensor

    @classmethod
    def of(cls, observation: Observation) -> "RiskInputs":
        """Of the last step of an observation that carries the past."""
        past_BNR, market_BR = observation.past_BNR, observation.market_past_BR
        assert past_BNR is not None
        assert market_BR is not None
        features_BNTF = observation.features_BSNTF[:, -1]
        slow_T = recency(features_BNTF.shape[-2]).to(features_BNTF)
        age_T = torch.arange(features_BNTF.shape[-2] - 1, -1, -1).to(features_BNTF)
        fast_T = (1 - _FAST_DECAY) * _FAST_DECAY**age_T
        realised = [torch.stack([log_realised(x, n) for n in LOOKBACKS], dim=-1) for x in (past_BNR, market_BR)]
        simple_BNZ = torch.cat([realised[0], slow_T @ features_BNTF, fast_T @ features_BNTF], dim=-1)
        return cls(simple_BNZ, realised[1], observation.present_BN)

    def relative(self) -> Tensor:
        """simple_BNZ less its mean over the present assets of the date; 0 for absent ones."""
        return less_date_mean(self.simple_BNZ, self.present_BN)

    def level_inputs(self) -> Tensor:
        """inputs_BJ of the level: means over the assets, the market, and 1."""
        means_BK = date_mean(self.simple_BNZ[..., : len(LOOKBACKS)], self.present_BN)
        return torch.cat([means_BK, self.market_BK, torch.ones_like(means_BK[:, :1])], dim=-1)


class RiskHead(nn.Module):
    """The network's distances from the level, and loadings on factors, from the latents of an asset and of the market."""

    def __init__(self, dim: int, factors: int):
        super().__init__()
        self.factors = factors
        self.mlp = nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU(), nn.Linear(dim, len(HORIZONS) + factors + 1))
        out = self.mlp[-1]
        nn.init.zeros_(out.weight[: len(HORIZONS)])  # type: ignore[index]
        nn.init.zeros_(out.bias)  # type: ignore[arg-type]

    def forward(self, assets_BND: Tensor, market_BD: Tensor) -> tuple[Tensor, Tensor]:
        """distance_BNV of log volatility, and loadings_BNL of returns with unit variance: their squares add up to less than 1."""
        both_BND = torch.cat([assets_BND, market_BD.unsqueeze(-2).expand_as(assets_BND)], dim=-1)
        distance_BNV, loading_BNL, specific_BN1 = self.mlp(both_BND).split([len(HORIZONS), self.factors, 1], dim=-1)
        total_BN1 = loading_BNL.square().sum(-1, keepdim=True) + F.softplus(specific_BN1) + 0.05
        return distance_BNV, loading_BNL / total_BN1.sqrt()

    def loss(self, assets_BND: Tensor, market_BD: Tensor, after_BNR: Tensor, present_BN: Tensor) -> dict[str, Tensor]:
        """Mean squared error of log volatility within the date, and minus the log likelihood of the cross-section of returns.

        Args:
            after_BNR: daily returns after the date, at least as many as the longest of HORIZONS; NaN where not known.
        """
        distance_BNV, loading_BNL = self(assets_BND, market_BD)
        target_BNV = realised_after(after_BNR)
        known_BNV = target_BNV.isfinite() & present_BN.unsqueeze(-1)
        gap_BNV = torch.where(known_BNV, distance_BNV - target_BNV.nan_to_num(), 0.0)
        count_B1V = known_BNV.sum(1, keepdim=True).clamp(min=1)
        gap_BNV = torch.where(known_BNV, gap_BNV - gap_BNV.sum(1, keepdim=True) / count_B1V, 0.0)
        # unknown labels count as exact, so that a batch in parts, or on several ranks, has the mean of the whole
        present_BNV = present_BN.unsqueeze(-1).expand_as(known_BNV)
        terms = {"volatility": masked_mean(gap_BNV.square(), present_BNV)}
        if self.factors:
            returns_BNR = after_BNR[..., : HORIZONS[1]].nan_to_num()
            scale_BN1 = returns_BNR.square().mean(-1, keepdim=True).sqrt().clamp(min=LEAST_VOLATILITY)
            unit_BNR = torch.where(present_BN.unsqueeze(-1), returns_BNR / scale_BN1, 0.0)
            loading_BNL = torch.where(present_BN.unsqueeze(-1), loading_BNL, 0.0)
            count_B = present_BN.sum(-1).clamp(min=1)
            terms["factors"] = (factor_surprise(loading_BNL, unit_BNR) / count_B).mean()
        return terms


def factor_surprise(loading_BNL: Tensor, unit_BNR: Tensor) -> Tensor:
    """Minus the normal log likelihood_B of a session's cross-section under C = L L' + diag(1 - |L|^2), less its constant.

    By Woodbury and the determinant lemma: K by K matrices alone are inverted.
    """
    specific_BN1 = (1 - loading_BNL.square().sum(-1, keepdim=True)).clamp(min=1e-4)
    scaled_BNL = loading_BNL / specific_BN1
    eye_LL = torch.eye(loading_BNL.shape[-1], dtype=loading_BNL.dtype, device=loading_BNL.device)
    cholesky_BLL = torch.linalg.cholesky(eye_LL + loading_BNL.mT @ scaled_BNL)
    projected_BLR = torch.linalg.solve_triangular(cholesky_BLL, scaled_BNL.mT @ unit_BNR, upper=False)
    square_B = (unit_BNR.square() / specific_BN1).sum(1).mean(-1) - projected_BLR.square().sum(1).mean(-1)
    log_det_B = specific_BN1.squeeze(-1).log().sum(-1) + 2 * cholesky_BLL.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * (square_B + log_det_B)


@dataclass(frozen=True)
class RiskForecast:
    """The distribution of returns after B dates; of absent assets it means nothing."""

    volatility_BMV: Tensor  # daily standard deviation over each of HORIZONS, of the assets and of the market proxy
    correlation_BMM: Tensor
    quantiles_2YQ: Tensor  # of an asset's and of a portfolio's standardised return, for RETURN_HORIZONS and LEVELS
    present_BN: Tensor

    def take(self, date: int, assets_N: Tensor) -> "RiskForecast":
        """Some assets of one date, by their numbers."""
        both_M = torch.cat([assets_N, assets_N.new_tensor([self.correlation_BMM.shape[-1] - 1])])
        one = slice(date, date + 1)
        correlation_1MM = self.correlation_BMM[one, both_M[:, None], both_M]
        return RiskForecast(
            self.volatility_BMV[one, both_M], correlation_1MM, self.quantiles_2YQ, self.present_BN[one, assets_N]
        )

    @property
    def volatility_BNV(self) -> Tensor:
        return self.volatility_BMV[:, :-1]

    @property
    def correlation_BNN(self) -> Tensor:
        return self.correlation_BMM[:, :-1, :-1]

    def step_covariance(self, stride: int, steps: int) -> Tensor:
        """covariance_BHMM of simple returns over each of the next decision steps of `stride` sessions.

        The term structure is that of the forecasts over 5, 21 and 63 sessions: the variance of a step is what the cumulative
        variance gains in it; log volatility is linear in the log of the horizon between them and constant outside.
        """
        ends_H = stride * torch.arange(1, steps + 1).to(self.volatility_BMV)
        known_V = torch.tensor(HORIZONS).to(ends_H).log()
        place_H = ends_H.log().clamp(known_V[0], known_V[-1])
        low_H = (torch.bucketize(place_H, known_V[1:-1], right=True)).clamp(max=len(HORIZONS) - 2)
        share_H = (place_H - known_V[low_H]) / (known_V[low_H + 1] - known_V[low_H])
        log_BMV = self.volatility_BMV.log()
        total_BMH = ends_H * torch.exp(2 * torch.lerp(log_BMV[..., low_H], log_BMV[..., low_H + 1], share_H))
        gained_BMH = torch.diff(total_BMH, dim=-1, prepend=torch.zeros_like(total_BMH[..., :1]))
        gained_BMH = torch.maximum(gained_BMH, _LEAST_GAIN * total_BMH[..., :1])
        volatility_BHM = gained_BMH.sqrt().mT
        return volatility_BHM.unsqueeze(-1) * self.correlation_BMM.unsqueeze(1) * volatility_BHM.unsqueeze(-2)

    def covariance(self, horizon: int = 21) -> Tensor:
        """covariance_BNN of daily returns over a horizon (5, 21 or 63 sessions)."""
        volatility_BN = self.volatility_BNV[..., HORIZONS.index(horizon)]
        return volatility_BN.unsqueeze(-1) * self.correlation_BNN * volatility_BN.unsqueeze(-2)

    def return_volatility(self, horizon: int) -> Tensor:
        """volatility_BN, a day, of the assets' returns over 1, 5 or 21 sessions; of one session it is that of five."""
        return self.volatility_BNV[..., _VOLATILITY_OF[RETURN_HORIZONS.index(horizon)]]

    def quantiles(self, levels: tuple[float, ...], horizon: int) -> Tensor:
        """quantiles_BNQ of assets' simple returns over 1, 5 or 21 sessions."""
        return self.return_volatility(horizon).unsqueeze(-1) * horizon**0.5 * self._standard(0, levels, horizon)

    def portfolio_volatility(self, weights_BCN: Tensor, horizon: int) -> Tensor:
        """volatility_BC, a day, of portfolios' returns over 1, 5 or 21 sessions."""
        covariance_BNN = self.covariance(HORIZONS[_VOLATILITY_OF[RETURN_HORIZONS.index(horizon)]])
        return ((weights_BCN @ covariance_BNN) * weights_BCN).sum(-1).clamp(min=0).sqrt()

    def portfolio_quantiles(self, weights_BCN: Tensor, levels: tuple[float, ...], horizon: int) -> Tensor:
        """quantiles_BCQ of portfolios' simple returns over 1, 5 or 21 sessions."""
        volatility_BC = self.portfolio_volatility(weights_BCN, horizon)
        return volatility_BC.unsqueeze(-1) * horizon**0.5 * self._standard(1, levels, horizon)

    def unit_quantiles(self, levels: tuple[float, ...], horizon: int) -> Tensor:
        """quantiles_Q of an asset whose daily volatility is 1."""
        return horizon**0.5 * self._standard(0, levels, horizon)

    def _standard(self, kind: int, levels: tuple[float, ...], horizon: int) -> Tensor:
        stored_Q = self.quantiles_2YQ[kind, RETURN_HORIZONS.index(horizon)]
        place_Q = torch.tensor([(level - LEVELS[0]) / (LEVELS[1] - LEVELS[0]) for level in levels]).to(stored_Q)
        place_Q = place_Q.clamp(0, len(LEVELS) - 1)
        low_Q = place_Q.floor().long().clamp(max=len(LEVELS) - 2)
        return torch.lerp(stored_Q[low_Q], stored_Q[low_Q + 1], place_Q - low_Q)


def normal_quantiles() -> Tensor:
    """quantiles_2YQ of a `RiskForecast` whose standardised returns are normal."""
    normal_Q = torch.tensor([NormalDist().inv_cdf(level) for level in LEVELS])
    return normal_Q.repeat(2, len(RETURN_HORIZONS), 1)


class RiskModel(nn.Module):
    """See the head of this module. Before anything is fitted it forecasts HAR with fixed weights and normal tails.

    Args:
        channels: F; dim: D of the latents; 0 for a model without a network.
        factors: L that the network learns; 0 for none, and C is textbook estimators alone.
    """

    linear_ZV: Tensor
    level_JV: Tensor
    market_shift_V: Tensor
    share_V: Tensor
    quantiles_2YQ: Tensor

    def __init__(self, channels: int, dim: int = 0, factors: int = 0):
        super().__init__()
        self.shape = (channels, dim, factors)
        simple, level = len(LOOKBACKS) + 2 * channels, 2 * len(LOOKBACKS) + 1
        self.head = RiskHead(dim, factors) if dim else None
        self.mix = CorrelationMix((*ESTIMATORS, LEARNED) if factors else ESTIMATORS)
        linear_ZV, level_JV = torch.zeros(simple, len(HORIZONS)), torch.zeros(level, len(HORIZONS))
        linear_ZV[: len(LOOKBACKS)] = level_JV[: len(LOOKBACKS)] = 1 / len(LOOKBACKS)
        self.register_buffer("linear_ZV", linear_ZV)
        self.register_buffer("level_JV", level_JV)
        self.register_buffer("market_shift_V", torch.zeros(len(HORIZONS)))  # of fixed HAR, for the market proxy
        self.register_buffer("share_V", torch.zeros(len(HORIZONS)))  # of the network in the distance
        self.register_buffer("quantiles_2YQ", normal_quantiles())

    def log_volatility(self, inputs: RiskInputs, distance_BNV: Tensor | None = None) -> Tensor:
        """log of the daily volatility over each of HORIZONS, [B, N, V].

        Args:
            distance_BNV: of the network; None for the linear branch alone.
        """
        forecast_BNV = inputs.relative() @ self.linear_ZV
        if distance_BNV is not None:
            forecast_BNV = torch.lerp(forecast_BNV, less_date_mean(distance_BNV, inputs.present_BN), self.share_V)
        level_BV = inputs.level_inputs() @ self.level_JV
        known_BN1 = inputs.simple_BNZ[..., : len(LOOKBACKS)].mean(-1, keepdim=True)
        away_BNV = (level_BV.unsqueeze(1) + forecast_BNV - known_BN1).clamp(-_MOST_DISTANCE, _MOST_DISTANCE)
        return known_BN1 + away_BNV

    def forward(
        self, observation: Observation, assets_BND: Tensor | None = None, market_BD: Tensor | None = None
    ) -> RiskForecast:
        """The forecast at the last step of an observation.

        Args:
            assets_BND, market_BD: latents of that step; None for a forecast without the network.
        """
        if self.head is None or assets_BND is None or market_BD is None:
            return self.forecast(observation)
        return self.forecast(observation, *self.head(assets_BND, market_BD))

    def forecast(
        self, observation: Observation, distance_BNV: Tensor | None = None, loading_BNL: Tensor | None = None
    ) -> RiskForecast:
        """The forecast from what the network says, or without one."""
        inputs = RiskInputs.of(observation)
        market_BV = inputs.market_BK.mean(-1, keepdim=True) + self.market_shift_V
        log_BMV = torch.cat([self.log_volatility(inputs, distance_BNV), market_BV.unsqueeze(1)], dim=1)
        correlation_BMM = self.mix(self.correlations(observation, loading_BNL))
        return RiskForecast(log_BMV.exp(), correlation_BMM, self.quantiles_2YQ, observation.present_BN)

    def correlations(self, observation: Observation, loading_BNL: Tensor | None = None) -> Tensor:
        """What the mix is made of, correlations_BKMM of the assets and the market proxy."""
        past_BNR, market_BR = observation.past_BNR, observation.market_past_BR
        assert past_BNR is not None
        assert market_BR is not None
        past_BNR = torch.where(observation.present_BN.unsqueeze(-1), past_BNR, torch.nan)
        past_BMR = torch.cat([past_BNR, market_BR.unsqueeze(1)], dim=1)
        known_BMR = past_BMR.isfinite()
        found_BKMM = estimate(scaled_by_local_volatility(past_BMR.nan_to_num(), known_BMR))
        if len(self.mix.names) == len(ESTIMATORS):
            return found_BKMM
        if loading_BNL is None:
            loading_BNL = past_BNR.new_zeros(*past_BNR.shape[:2], 1)
        loading_BML = F.pad(loading_BNL, (0, 0, 0, 1))  # the network says nothing of the market proxy
        loading_BML = torch.where(known_BMR.any(-1, keepdim=True), loading_BML, 0.0)
        return torch.cat([found_BKMM, with_diagonal(loading_BML @ loading_BML.mT).unsqueeze(1)], dim=1)


def date_mean(x_BNX: Tensor, present_BN: Tensor) -> Tensor:
    """Mean over the present assets of a date."""
    present_BN1 = present_BN.unsqueeze(-1)
    return torch.where(present_BN1, x_BNX, 0.0).sum(1) / present_BN1.sum(1).clamp(min=1)


def less_date_mean(x_BNX: Tensor, present_BN: Tensor) -> Tensor:
    return torch.where(present_BN.unsqueeze(-1), x_BNX - date_mean(x_BNX, present_BN).unsqueeze(1), 0.0)
