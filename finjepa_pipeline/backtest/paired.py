"""Two strategies on the same sessions: differences of net utility and of realised volatility with paired intervals, and with
them what each part of a planner is worth, and who acts.

Net utility of a session is log(1 + r) - 2.5 r^2 of the return r after costs, which is what planners maximise by default. Errors
are by Newey and West over a month. Shapes: T sessions.
"""

from dataclasses import dataclass
from statistics import NormalDist

import duckdb
import numpy as np
import polars as pl

from finjepa_model.planner_strategies import planner_of
from finjepa_pipeline.backtest.inference import MIN_BLOCK, newey_west_error
from finjepa_pipeline.backtest.metrics import BENCHMARK, SESSIONS_PER_YEAR, SHORTEST
from finjepa_pipeline.backtest.results import tried_ratios
from finjepa_pipeline.backtest.strategies import WITH, not_planners

RISK_AVERSION = 5.0  # that of the default utility
_TESTED = """
    SELECT strategy, date, net_return FROM main.backtest_returns
    WHERE checkpoint = $checkpoint AND data_version = $data_version AND block = 'validation'
        AND NOT list_contains($not_planners, string_split(strategy, ' with ')[-1]) AND strategy NOT LIKE '%:%'
    ORDER BY strategy, date
"""


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, apart_T: np.ndarray, level: float, scale: float) -> "Interval":
        """Of the mean of a series, 1 - `level`, times a scale."""
        margin = NormalDist().inv_cdf(1 - level / 2) * newey_west_error(apart_T, MIN_BLOCK)
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


@dataclass(frozen=True)
class Acting:
    """Who acts for a checkpoint: the planner that the operator chose, unless another one has evidence that it is worth more.

    FINJEPA_PLANNER names the choice, a planner or one with its utility ("mppi | log_growth - 5*variance"). Evidence is a paired
    interval of net utility on the validation block. It must lie above zero at a level that counts every configuration tried on
    some of these sessions (Bonferroni: 95 % of one, 99.5 % of ten). A Sharpe ratio of so few years tells luck from skill too
    rarely to choose by it.

    Attributes:
        strategy: None where that is open.
        text: why, and what is known of each other planner.
    """

    strategy: str | None
    text: str


def acting_planner(con: duckdb.DuckDBPyConnection, checkpoint: str, data_version: str, chosen: str) -> Acting:
    """By the results on the validation block.

    Args:
        chosen: by the operator. Where it was not tested, the only planner that was is taken for the choice.
    """
    key = {"checkpoint": checkpoint, "data_version": data_version, "not_planners": not_planners()}
    frame = con.sql(_TESTED, params=key).pl()
    tested = {str(name): one for (name,), one in frame.group_by("strategy", maintain_order=True)}
    if not tested:
        return Acting(None, "no planner was backtested on the validation block; run `finjepa backtest`")
    exact = [name for name in tested if name == chosen]
    named = exact or [name for name in tested if planner_of(name) == chosen] or list(tested)
    if len(named) > 1:
        what = (
            f"several backtests fit FINJEPA_PLANNER={chosen!r}"
            if named != list(tested)
            else f"{chosen} was not backtested"
        )
        return Acting(
            None,
            f"{what}, and {', '.join(named)} were: set FINJEPA_PLANNER to one of them, or backtest --planner {chosen}",
        )
    [choice] = named
    why = (
        "the operator's choice (FINJEPA_PLANNER)" if planner_of(choice) == planner_of(chosen) else "the only one tested"
    )
    first, last = frame["date"].min(), frame["date"].max()
    tried = max(len(tried_ratios(con, first, last)), 1)  # type: ignore[arg-type]
    apart = {name: _difference(one, tested[choice], 0.05 / tried) for name, one in tested.items() if name != choice}
    better = {name: found for name, found in apart.items() if found is not None and found.low > 0}
    acts = max(better, key=lambda name: better[name].low, default=choice)
    lines = [f"{choice} acts: {why}." if acts == choice else f"{acts} acts in place of {choice}, {why}, by evidence."]
    lines += [
        f"Net utility of {name} minus that of {choice}: {_in_words(found, tried)}." for name, found in apart.items()
    ]
    return Acting(acts, " ".join(lines))


def _difference(first: pl.DataFrame, second: pl.DataFrame, level: float) -> Interval | None:
    """Of net utility on the dates that both have; None where they are fewer than `SHORTEST`."""
    both = first.join(second, on="date", suffix="_of_second")
    if len(both) < SHORTEST:
        return None
    return utility_difference(both["net_return"].to_numpy(), both["net_return_of_second"].to_numpy(), level)


def _in_words(found: Interval | None, tried: int) -> str:
    if found is None:
        return f"too few sessions in common, {SHORTEST} are needed"
    middle, low, high = (100 * x for x in (found.mean, found.low, found.high))
    verdict = "evidence" if low > 0 else "no evidence"
    return (
        f"{middle:+.2f} % a year ({low:+.2f} to {high:+.2f}, at the level of {tried} configurations tried), {verdict}"
    )
