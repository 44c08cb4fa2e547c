"""Two strategies on the same sessions: differences of net utility and of realised volatility with paired intervals, and with
them what each part of a planner is worth.

Errors are by Newey and West over a month. Shapes: T sessions.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.stats import norm

from finjepa_pipeline.backtest.inference import MIN_BLOCK, newey_west_error
from finjepa_pipeline.backtest.metrics import BENCHMARK, SESSIONS_PER_YEAR, SHORTEST
from finjepa_pipeline.backtest.strategies import WITH

RISK_AVERSION = 5.0  # that of the default utility


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, apart_T: np.ndarray, level: float, scale: float) -> "Interval":
        """Of the mean of a series, 1 - `level`, times a scale."""
        margin = float(norm.ppf(1 - level / 2)) * newey_west_error(apart_T, MIN_BLOCK)
        mean = float(apart_T.mean())
        return cls(scale * mean, scale * (mean - margin), scale * (mean + margin))


def net_utility(net_T: np.ndarray) -> np.ndarray:
    """Of each session, in log growth; its mean times the sessions of a year is log growth less the price of risk a year."""
    return np.log1p(net_T) - RISK_AVERSION / 2 * np.square(net_T)


def utility_difference(net_T: np.ndarray, other_T: np.ndarray, level: float = 0.05) -> Interval:
    """Net utility a year of one strategy less that of another."""
    return Interval.of(net_utility(net_T) - net_utility(other_T), level, SESSIONS_PER_YEAR)


def volatility_difference(net_T: np.ndarray, other_T: np.ndarray, level: float = 0.05) -> Interval:
    """Realised volatility of one strategy less that of another, as a share of the latter's: half of the relative difference of
    mean squares, to the first order."""
    return Interval.of(np.square(net_T) - np.square(other_T), level, 0.5 / max(float(np.square(other_T).mean()), 1e-12))


@dataclass(frozen=True)
class Part:
    """What a part of a planner is worth: the strategy with it less the one without."""

    part: str
    first: str
    second: str
    utility: Interval
    volatility: Interval


def parts_of(returns: pl.DataFrame, planner: str) -> list[Part]:
    """Of a planner beside its controls, as far as they were tested; nothing where the block is too short.

    From 1/N to the planner by the planner with EWMA moments and with an untrained model: the first three add up to the difference
    between planner and 1/N. The data are worth what is lost when decisions are dealt to other assets.

    Args:
        returns: rows of `backtest_returns` of one block.
    """
    net = {str(name): one.sort("date")["net_return"].to_numpy() for (name,), one in returns.group_by("strategy")}
    pairs = (
        ("planner", f"{planner}{WITH}ewma", BENCHMARK),
        ("risk model, nothing fitted", f"{planner}{WITH}untrained", f"{planner}{WITH}ewma"),
        ("learned part", planner, f"{planner}{WITH}untrained"),
        ("risk model, against Ledoit-Wolf", planner, f"{planner}{WITH}ledoit_wolf"),
        ("data", planner, f"{planner}{WITH}shuffled_actions"),
        ("all of it", planner, BENCHMARK),
    )
    return [
        Part(part, first, second, *(f(net[first], net[second]) for f in (utility_difference, volatility_difference)))
        for part, first, second in pairs
        if first in net and second in net and len(net[first]) >= SHORTEST
    ]


def rows_of(parts: list[Part]) -> list[tuple[str, ...]]:
    """The table of a report, as text: part, what is compared, and both differences with their 95 % intervals."""

    def said(x: Interval) -> str:
        return f"{100 * x.mean:+.2f} % ({100 * x.low:+.2f} to {100 * x.high:+.2f})"

    return [(one.part, f"{one.first} less {one.second}", said(one.utility), said(one.volatility)) for one in parts]
