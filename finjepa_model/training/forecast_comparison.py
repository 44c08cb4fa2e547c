"""Whether the forecasts of one model are better than those of another: proper scores on the same dates, assets and portfolios.

A date has four losses, means over its assets or over random portfolios that depend on the date alone:

- QLIKE (Patton 2011) of the volatility of assets over 21 sessions, and of the variance of portfolios over the same;
- of returns of portfolios over five sessions, in units of their volatility over the past year: the continuous ranked probability
  score, which is the energy score of a single number, and the score of the central 90 % interval, which prices its coverage
  (Gneiting and Raftery 2007).

The rule: each loss difference is divided by its standard deviation over the dates, and their mean is the difference of a date
(O'Brien 1984, many endpoints and one direction). Its t-value is by Newey and West with a bandwidth of 1.3 sqrt(D) dates (Lazarus,
Lewis, Stock and Watson 2018), since differences of forecasts last longer than their targets overlap, against the fixed-b critical
value of that bandwidth (Kiefer and Vogelsang 2005) at 2.5 % one-sided. Beyond it a difference is beyond chance; otherwise, and
with fewer than `LEAST_DATES`, the forecasts count as equal.

Shapes: B dates of a chunk, N assets, C portfolios, T sessions after a date, R sessions before it, D dates with losses, K scores.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finjepa_model.config import FinJEPAConfig
from finjepa_model.nn.risk import LEVELS, RiskForecast
from finjepa_model.training.risk_fit import RiskBlock, random_portfolios
from finjepa_model.training.risk_scores import coverage, crps, newey_west_t, qlike
from finjepa_model.training.textbook import Distribution

SCORES = (
    "QLIKE of volatility, 21 sessions",
    "QLIKE of portfolio variance, 21 sessions",
    "CRPS of portfolio returns, 5 sessions",
    "90 % interval score of portfolio returns, 5 sessions",
)
EVERY = 5  # sessions from one scored date to the next
LEAST_DATES = 38  # those of a block of 210 sessions: a single calm or stormy spell decides a shorter one
_PORTFOLIOS = 16
_MOST_ASSETS = 50  # of a date
_TARGET, _RETURN = 21, 5  # sessions
_OUTSIDE = 0.1  # of the central interval
_YEAR = 252
# in powers of bandwidth / D: Bartlett kernel, 97.5 % (Kiefer and Vogelsang 2005)
_CRITICAL = (1.96, 2.9694, 0.416, -0.5324)


@dataclass(frozen=True)
class ForecastLosses:
    """Of one forecaster: a loss for each date and score, lower is better.

    Attributes:
        sessions_D: int64, numbers of the sessions after whose close was forecast.
        covered_D: share of the portfolios' returns that lay within the central 90 %.
    """

    sessions_D: np.ndarray
    losses_DK: np.ndarray
    covered_D: np.ndarray

    @property
    def means(self) -> dict[str, float]:
        return dict(zip(SCORES, self.losses_DK.mean(0).tolist(), strict=True))

    @property
    def coverage(self) -> float:
        return float(self.covered_D.mean())


def forecast_losses(forecast: Distribution, config: FinJEPAConfig, block: RiskBlock) -> ForecastLosses:
    """Losses on every fifth session of a block, of at most fifty of its eligible assets.

    Args:
        config: of what the forecast reads.

    Raises:
        FinJEPAError: if no session of the block has three assets with a year behind them.
    """
    sessions, rows = [], []
    with torch.no_grad():
        for chunk in block.chunks(config, EVERY, _MOST_ASSETS):
            past_BNR = chunk.observation.past_BNR
            assert past_BNR is not None
            whole, after_BNT = forecast(chunk), chunk.after_BNT[..., :_TARGET]
            known_BN = after_BNT.isfinite().all(-1) & chunk.observation.present_BN
            for b, session in enumerate(chunk.dates_B.tolist()):
                at = known_BN[b].nonzero().squeeze(-1)
                if len(at) >= 3:
                    sessions.append(session)
                    rows.append(losses_of_date(whole.take(b, at), past_BNR[b, at], after_BNT[b, at], session))
    table = np.array(rows).reshape(len(rows), len(SCORES) + 1)
    return ForecastLosses(np.array(sessions, np.int64), table[:, :-1], table[:, -1])


def losses_of_date(forecast: RiskForecast, past_NR: Tensor, after_NT: Tensor, seed: int) -> tuple[float, ...]:
    """The losses of one date in the order of `SCORES`, then the share of portfolio returns within the central 90 %.

    Args:
        forecast: of one date, all of whose assets are present.
        past_NR: simple returns up to the date, NaN where not observed; after_NT: of the 21 sessions after it.
        seed: of the portfolios.
    """
    after_NT = after_NT.double()
    weights_CN = random_portfolios(len(after_NT), _PORTFOLIOS, torch.Generator().manual_seed(seed))
    covariance_NN = forecast.covariance(_TARGET)[0].double()
    variance_N = after_NT.square().mean(-1)
    of_assets = qlike(variance_N.numpy(), covariance_NN.diagonal().numpy()).mean()
    realised_C = (weights_CN @ after_NT).square().mean(-1)
    forecast_C = ((weights_CN @ covariance_NN) * weights_CN).sum(-1)
    of_portfolios = qlike(realised_C.numpy(), forecast_C.numpy()).mean()

    scale_C = (weights_CN @ past_NR[:, -_YEAR:].nan_to_num().double()).square().mean(-1).sqrt() * _RETURN**0.5
    scale_C1 = scale_C.clamp(min=1e-6).unsqueeze(-1)
    return_N = (1 + after_NT[:, :_RETURN]).prod(-1) - 1
    outcome_C = ((weights_CN @ return_N) / scale_C1.squeeze(-1)).numpy()
    quantile_CQ = forecast.portfolio_quantiles(weights_CN[None].float(), LEVELS, _RETURN)[0].double() / scale_C1
    quantile_CQ = quantile_CQ.numpy()
    low_C, high_C = (quantile_CQ[:, LEVELS.index(round(level, 3))] for level in (_OUTSIDE / 2, 1 - _OUTSIDE / 2))
    missed_C = np.maximum(low_C - outcome_C, 0) + np.maximum(outcome_C - high_C, 0)
    interval = (high_C - low_C + 2 / _OUTSIDE * missed_C).mean()
    ranked = crps(outcome_C, quantile_CQ, np.array(LEVELS)).mean()
    return float(of_assets), float(of_portfolios), float(ranked), float(interval), coverage(outcome_C, low_C, high_C)


@dataclass(frozen=True)
class ForecastComparison:
    """One forecaster less another one. A negative t-value: the first is better.

    Attributes:
        t_value: of the combined difference; NaN with fewer than `LEAST_DATES` dates.
        critical: beyond which it is not chance.
    """

    t_value: float
    critical: float
    dates: int

    @property
    def better(self) -> bool:
        return self.t_value < -self.critical

    @property
    def worse(self) -> bool:
        return self.t_value > self.critical


def compare_forecasts(first: ForecastLosses, second: ForecastLosses) -> ForecastComparison:
    """By the rule at the head of this module, on the dates that both have."""
    _, place_D, other_D = np.intersect1d(first.sessions_D, second.sessions_D, return_indices=True)
    apart_DK = first.losses_DK[place_D] - second.losses_DK[other_D]
    count = len(apart_DK)
    if count < LEAST_DATES:
        return ForecastComparison(math.nan, math.inf, count)
    spread_K = apart_DK.std(0)
    apart_D = (apart_DK / np.where(spread_K > 0, spread_K, 1.0)).mean(1)
    bandwidth = math.ceil(1.3 * math.sqrt(count))
    critical = sum(factor * (bandwidth / count) ** power for power, factor in enumerate(_CRITICAL))
    return ForecastComparison(newey_west_t(apart_D, bandwidth - 1), critical, count)
