"""Textbook forecasts of risk: what anybody can compute from past returns, as baselines of the world model's.

Shapes: B dates, N assets, M = N + 1 with the market, R rows (date, asset) or past sessions, V horizons, J inputs of HAR.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from finjepa_model.config import FinJEPAConfig
from finjepa_model.nn.covariance import estimate, ledoit_wolf, quadratic_inverse_shrinkage
from finjepa_model.nn.risk import HORIZONS, LOOKBACKS, RiskForecast, RiskInputs, log_realised, normal_quantiles
from finjepa_model.planning.imagination import one_factor_covariance
from finjepa_model.training.risk_fit import Chunk, RiskBlock

Volatility = Callable[[Chunk], Tensor]  # log of the daily volatility over each of HORIZONS, [B, N, V]
Covariance = Callable[[Chunk], Tensor]  # daily, over 21 sessions, [B, N, N] float64
Distribution = Callable[[Chunk], RiskForecast]
EVERY = 5  # sessions from one date that is fitted or scored to the next
_YEAR = 252


def history_volatility(chunk: Chunk, sessions: int = 20) -> Tensor:
    """Standard deviation of the last 20 returns, for every horizon."""
    past_BNR = chunk.observation.past_BNR
    assert past_BNR is not None
    return log_realised(past_BNR, sessions).unsqueeze(-1).expand(*past_BNR.shape[:2], len(HORIZONS))


def ewma_volatility(chunk: Chunk) -> Tensor:
    """RiskMetrics 1996, decay .94, for every horizon."""
    volatility_BN = chunk.observation.volatility_BSN[:, -1]
    return volatility_BN.log().unsqueeze(-1).expand(*volatility_BN.shape, len(HORIZONS))


def fixed_har_volatility(chunk: Chunk) -> Tensor:
    """Mean of four log realised volatilities: HAR that nothing is fitted in."""
    realised_BNK = RiskInputs.of(chunk.observation).simple_BNZ[..., : len(LOOKBACKS)]
    return realised_BNK.mean(-1, keepdim=True).expand(*realised_BNK.shape[:2], len(HORIZONS))


def rows_of(
    block: RiskBlock, config: FinJEPAConfig, inputs: Callable[[Chunk], Tensor], every: int = EVERY, most: int = 512
) -> tuple[Tensor, Tensor]:
    """float64 inputs_RJ and target_RV of at most so many assets of every `every`-th session, where targets are known."""
    rows: tuple[list[Tensor], list[Tensor]] = ([], [])
    for chunk in block.chunks(config, every, most):
        target_BNV = chunk.target_BNV
        known_BN = target_BNV.isfinite().all(-1)
        rows[0].append(inputs(chunk)[known_BN])
        rows[1].append(target_BNV[known_BN])
    x_RJ, y_RV = (torch.cat(part).double() for part in rows)
    return x_RJ, y_RV


def _har_inputs(chunk: Chunk) -> Tensor:
    seen = RiskInputs.of(chunk.observation)
    own_BNK = seen.simple_BNZ[..., : len(LOOKBACKS)]
    market_BNK = seen.market_BK.unsqueeze(1).expand_as(own_BNK)
    return torch.cat([own_BNK, market_BNK, torch.ones_like(own_BNK[..., :1])], dim=-1)


def fit_har(block: RiskBlock, config: FinJEPAConfig, most: int = 512) -> Tensor:
    """HAR (Corsi 2009) on the four windows of the asset and of the market, by least squares on `rows_of` the block, moved so that
    its variance is unbiased there: weights_JV.

    Raises:
        FinJEPAError: if the block has no rows.
    """
    x_RJ, y_RV = rows_of(block, config, _har_inputs, most=most)
    weights_JV = torch.linalg.lstsq(x_RJ, y_RV, driver="gelsd").solution
    weights_JV[-1] += 0.5 * torch.exp(2 * (y_RV - x_RJ @ weights_JV)).mean(0).log()
    return weights_JV.float()


def har_volatility(weights_JV: Tensor) -> Volatility:
    """What HAR forecasts with weights that were fitted by `fit_har`."""
    return lambda chunk: _har_inputs(chunk) @ weights_JV


def normal_distribution(covariance_BNN: Tensor, chunk: Chunk) -> RiskForecast:
    """Normal returns with one daily covariance for every horizon."""
    volatility_BN = covariance_BNN.diagonal(dim1=-2, dim2=-1).clamp(min=1e-12).sqrt()
    correlation_BNN = covariance_BNN / (volatility_BN.unsqueeze(-1) * volatility_BN.unsqueeze(-2))
    correlation_BMM = torch.zeros(*(n + (i > 0) for i, n in enumerate(correlation_BNN.shape)))
    correlation_BMM[:, :-1, :-1], correlation_BMM[:, -1, -1] = correlation_BNN, 1.0
    volatility_BMV = F.pad(volatility_BN, (0, 1), value=1.0).unsqueeze(-1).expand(-1, -1, len(HORIZONS)).float()
    return RiskForecast(volatility_BMV, correlation_BMM, normal_quantiles(), chunk.observation.present_BN)


def history_distribution(chunk: Chunk, sessions: int = 20) -> RiskForecast:
    """Normal, with the covariance of the last 20 returns."""
    past_BNR = _past_year(chunk)[..., -sessions:]
    return normal_distribution(past_BNR @ past_BNR.mT / sessions, chunk)


def ewma_distribution(chunk: Chunk) -> RiskForecast:
    """RiskMetrics 1996: normal, with the exponentially weighted covariance, decay .94."""
    past_BNR = _past_year(chunk)
    weight_R = 0.94 ** torch.arange(past_BNR.shape[-1] - 1, -1, -1, dtype=past_BNR.dtype)
    return normal_distribution((past_BNR * weight_R / weight_R.sum()) @ past_BNR.mT, chunk)


def ewma_one_factor(chunk: Chunk) -> Tensor:
    """Trailing beta, exponentially weighted volatilities: what planners used before there was a risk model."""
    seen = chunk.observation
    moments = (seen.volatility_BSN[:, -1:], seen.market_volatility_BS[:, -1:], seen.beta_BSN[:, -1])
    return one_factor_covariance(*(x.double() for x in moments))[:, 0, :-1, :-1]


def sample_shrinkage(chunk: Chunk, nonlinear: bool = False) -> Tensor:
    """Ledoit and Wolf on the last 252 returns: linear (2004) or non-linear (2022)."""
    shrink = quadratic_inverse_shrinkage if nonlinear else ledoit_wolf
    past_BNR = _past_year(chunk)
    return torch.stack([shrink((x_NR - x_NR.mean(-1, keepdim=True)).T) for x_NR in past_BNR])


def har_with_shrunk_correlations(chunk: Chunk) -> Tensor:
    """Fixed HAR volatility; correlations half of one factor and half of the sample, 252 returns."""
    return analytic_distribution(chunk).covariance().double()


def analytic_distribution(chunk: Chunk, volatility: Volatility = fixed_har_volatility) -> RiskForecast:
    """`har_with_shrunk_correlations` as a distribution: nothing in it is fitted but perhaps another volatility, and returns are
    normal."""
    correlation_BNN = estimate(_past_year(chunk), ("one_factor", "sample_252")).mean(1)
    forecast = normal_distribution(correlation_BNN, chunk)
    volatility_BMV = F.pad(volatility(chunk).exp(), (0, 0, 0, 1), value=1.0)
    return replace(forecast, volatility_BMV=volatility_BMV)


def _past_year(chunk: Chunk) -> Tensor:
    past_BNR = chunk.observation.past_BNR
    assert past_BNR is not None
    return past_BNR[..., -_YEAR:].nan_to_num().double()
