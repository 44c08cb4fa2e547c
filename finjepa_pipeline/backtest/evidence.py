"""What was imagined against what came: of planners by decision step, of forecasters by asset.

Shapes: D decisions, N assets of a view.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from finjepa_pipeline.backtest.engine import Court, Walk
from finjepa_pipeline.backtest.finjepa_strategy import Expectation
from finjepa_pipeline.backtest.information import Information, information
from finjepa_pipeline.backtest.market_view import MarketView
from finjepa_pipeline.backtest.metrics import SHORTEST


@dataclass(frozen=True)
class Expectations:
    """Log growth and volatility of each decision step as they were imagined, and the growth that came, net of costs."""

    dates_D: np.ndarray
    imagined_D: np.ndarray
    volatility_D: np.ndarray
    realised_D: np.ndarray


@dataclass(frozen=True)
class Calibration:
    """How imagined growth relates to realised growth.

    Attributes:
        correlation: over decisions; slope: of realised on imagined, 1 for a calibrated planner.
        covered: share of decisions within two imagined standard deviations of the imagined growth.
    """

    correlation: float
    slope: float
    covered: float


def judge_expectations(expected: Sequence[tuple[np.datetime64, Expectation]], walk: Walk) -> Expectations:
    """Line up what a strategy expected at its decisions with what its walk made of them; a step runs to the close of the
    next decision."""
    wealth = dict(zip(walk.dates_T, walk.wealth_T, strict=True))
    wealth[walk.decided_K[0]] = 1.0
    ends = dict(zip(walk.decided_K, [*walk.decided_K[1:], walk.dates_T[-1]], strict=True))
    return Expectations(
        dates_D=np.array([date for date, _ in expected]),
        imagined_D=np.array([one.growth for _, one in expected]),
        volatility_D=np.array([one.volatility for _, one in expected]),
        realised_D=np.array([np.log(wealth[ends[date]] / wealth[date]) for date, _ in expected]),
    )


def calibration(expectations: Expectations) -> Calibration:
    """NaN where the imagined growth never moves."""
    imagined_D, realised_D = expectations.imagined_D, expectations.realised_D
    if len(imagined_D) < 3 or imagined_D.std() < 1e-12 or realised_D.std() < 1e-12:
        return Calibration(float("nan"), float("nan"), float("nan"))
    correlation = float(np.corrcoef(imagined_D, realised_D)[0, 1])
    return Calibration(
        correlation=correlation,
        slope=float(correlation * realised_D.std() / imagined_D.std()),
        covered=float((np.abs(realised_D - imagined_D) <= 2 * expectations.volatility_D).mean()),
    )


def forecast_quality(
    forecast: Callable[[MarketView], np.ndarray], court: Court, views: Sequence[MarketView], shift: int = 0
) -> dict[str, Information]:
    """IC and RankIC of a forecast of the next decision step's return, from the fill on.

    Args:
        shift: sessions by which the outcomes are moved; a forecast that is best at another shift than 0 has been fitted to
            other labels than it is paid for.
    """
    stride = int(np.median(np.diff(court.decisions))) if len(court.decisions) > 1 else court.end - min(court.decisions)
    forecasts, outcomes = [], []
    for session, view in zip(court.decisions, views, strict=True):
        start = session + 1 + shift
        if start + stride > len(court.panel.dates) - 1:
            continue
        assets_N = view.asset_indices
        returns_1NT, _ = court.panel.returns_after(np.array([start]), assets_N[None], stride)
        alive_N = court.panel.rows(start + stride, assets_N) >= 0
        known_N = view.present_N & alive_N
        forecasts.append(np.where(known_N, forecast(view), np.nan))
        growth_N = np.log1p(returns_1NT.astype(np.float64)).sum(-1).ravel()
        outcomes.append(np.where(known_N, growth_N, np.nan))
    width = max((len(row) for row in forecasts), default=0)
    forecast_DN, outcome_DN = (
        np.array([np.pad(row, (0, width - len(row)), constant_values=np.nan) for row in rows]).reshape(-1, width)
        for rows in (forecasts, outcomes)
    )
    # consecutive steps do not overlap; a lag of one covers the session between a decision and its fill
    return {
        name: _bounded(information(forecast_DN, outcome_DN, ranks=name == "rank_ic", lags=1), len(court.dates_T))
        for name in ("ic", "rank_ic")
    }


def _bounded(found: Information, sessions: int) -> Information:
    """Without interval and t-value where the block is too short for them."""
    nan = float("nan")
    return found if sessions >= SHORTEST else replace(found, ratio=nan, t=nan, low=nan, high=nan)
