"""What may be concluded: bootstrap intervals of Sharpe ratios, tests of the whole table, corrections for the number of
configurations tried, information coefficients of forecasts, and paired differences of two strategies, with what each part of a
planner is worth.

Bootstrap: Politis and Romano 1994, block length Politis and White 2004; SPA: Hansen 2005; PSR and DSR: Bailey and Lopez de
Prado 2012, 2014; PBO by CSCV: Bailey, Borwein, Lopez de Prado and Zhu 2017; errors under overlap: Newey and West 1987. PSR, DSR
and PBO take Sharpe ratios per session, the others a year; kurtosis is plain (3 for a normal).

Shapes: T sessions, K strategies or decisions, N configurations tried or assets, S bootstrap samples or blocks, C splits into
two halves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl

from finjepa_model.market_view import MarketView
from finjepa_model.planning.goals import RISK_AVERSION
from finjepa_model.training.risk_scores import newey_west_error
from finjepa_pipeline.backtest.engine import BacktestSetup
from finjepa_pipeline.backtest.metrics import BENCHMARK, SESSIONS_PER_YEAR, SHORTEST, sharpe
from finjepa_pipeline.backtest.strategies import WITH

MIN_BLOCK = 21  # sessions: volatility clusters for about a month, whatever the mean's autocorrelation says
CSCV_BLOCKS = 16  # 12,870 splits
SAME_BET = 0.5  # configurations that correlate more than this count as one
_LEAST_ASSETS = 3  # a correlation of two points is always one


def bootstrap(
    returns_TX: np.ndarray, statistic: Callable[[np.ndarray], Any], *, block: int, samples: int, seed: int = 0
) -> np.ndarray:
    """A statistic of each sample of the stationary bootstrap, of whole rows, stacked: [S, ...]; see `block_length`."""
    from arch.bootstrap import StationaryBootstrap  # half a second, which a definition need not wait for

    drawn = StationaryBootstrap(block, returns_TX, seed=seed).bootstrap(samples)
    return np.stack([statistic(np.asarray(data[0])) for data, _ in drawn])


def block_length(returns_T: np.ndarray) -> int:
    """Mean block of the stationary bootstrap, in sessions; a tenth of them at most, so that there are ten blocks."""
    from arch.bootstrap import optimal_block_length  # likewise

    optimal = float(optimal_block_length(returns_T)["stationary"].iloc[0]) if returns_T.std() > 0 else MIN_BLOCK
    longest = max(MIN_BLOCK, len(returns_T) // 10)
    return min(max(MIN_BLOCK, int(np.ceil(np.nan_to_num(optimal)))), longest, len(returns_T))


def sharpe_intervals(excess_TK: np.ndarray, benchmark: int, *, samples: int = 2000) -> dict[str, np.ndarray]:
    """Annualised Sharpe ratios of K strategies, and of each minus the benchmark's (`excess_`), with 95 % percentile intervals of
    a paired bootstrap, and `probability_better`, the share of the samples in which a strategy's ratio is above the benchmark's;
    [K] by column of the leaderboard. Intervals are NaN where there are fewer than `SHORTEST` sessions.

    Strategies stay paired with the benchmark; blocks and the random stream depend on the benchmark only, so that an interval does
    not change when another strategy joins the table.

    Args:
        excess_TK: daily returns over cash.
        benchmark: column of the benchmark.
    """
    sharpe_K = sharpe(excess_TK)
    sharpe_SK = np.full((1, len(sharpe_K)), np.nan)
    if len(excess_TK) >= SHORTEST:
        sharpe_SK = bootstrap(excess_TK, sharpe, block=block_length(excess_TK[:, benchmark]), samples=samples)
    excess_SK = sharpe_SK - sharpe_SK[:, [benchmark]]
    low_K, high_K = np.percentile(sharpe_SK, [2.5, 97.5], axis=0)
    excess_low_K, excess_high_K = np.percentile(excess_SK, [2.5, 97.5], axis=0)
    return {
        "sharpe": sharpe_K,
        "sharpe_low": low_K,
        "sharpe_high": high_K,
        "excess_sharpe": sharpe_K - sharpe_K[benchmark],
        "excess_low": excess_low_K,
        "excess_high": excess_high_K,
        "probability_better": np.where(np.isnan(excess_SK).any(0), np.nan, (excess_SK > 0).mean(0)),
    }


def superior_predictive_ability(returns_TK: np.ndarray, benchmark: int, *, samples: int = 1000) -> float | None:
    """p-value of Hansen's test (2005, consistent version) that no strategy has a higher mean return than the benchmark; None
    where nobody differs from the benchmark, or there are fewer than `SHORTEST` sessions."""
    from arch.bootstrap import SPA  # likewise

    others_TK, benchmark_T = np.delete(returns_TK, benchmark, axis=1), returns_TK[:, benchmark]
    differs_K = (others_TK - benchmark_T[:, None]).std(axis=0) > 1e-12
    if not differs_K.any() or len(returns_TK) < SHORTEST:
        return None
    how = {"block_size": block_length(benchmark_T), "reps": samples, "bootstrap": "stationary", "seed": 0}
    test = SPA(-benchmark_T, -others_TK[:, differs_K], **how)
    test.compute()
    return float(np.asarray(test.pvalues)[1])  # lower, consistent, upper


def sharpe_error(excess_T: np.ndarray) -> float:
    """Standard error of an annualised Sharpe ratio: sqrt((1 + SR_d^2/2) / years), SR_d per session (Lo 2002)."""
    daily = float(np.nan_to_num(sharpe(excess_T))) / np.sqrt(SESSIONS_PER_YEAR)
    return float(np.sqrt((1 + daily**2 / 2) * SESSIONS_PER_YEAR / len(excess_T)))


def detectable_gain(returns_T: np.ndarray, benchmark_T: np.ndarray) -> float:
    """The true gain in annualised Sharpe ratio that is found in 80 % of such blocks at 5 % one-sided, by a standard error of
    sqrt(2 (1 - rho) / years) for returns that correlate by rho (Jobson and Korkie 1981, small ratios). NaN where there are
    fewer than `SHORTEST` sessions."""
    if len(returns_T) < SHORTEST:
        return float("nan")
    moving = min(returns_T.std(), benchmark_T.std()) > 1e-12
    rho = float(np.corrcoef(returns_T, benchmark_T)[0, 1]) if moving else 0.0
    error = np.sqrt(2 * max(1 - rho, 0.0) * SESSIONS_PER_YEAR / len(returns_T))
    return float((NormalDist().inv_cdf(0.95) + NormalDist().inv_cdf(0.80)) * error)


def probabilistic_sharpe(excess_T: np.ndarray, target: float = 0.0) -> float:
    """PSR: probability that the true Sharpe ratio is above `target` (per session). NaN where nothing moves, or there are fewer
    than `SHORTEST` sessions."""
    from skfolio.measures import probabilistic_sharpe_ratio  # likewise

    if len(excess_T) < SHORTEST or excess_T.std(ddof=1) <= 1e-12:
        return float("nan")
    return float(probabilistic_sharpe_ratio(excess_T, target))


def expected_highest_sharpe(tried_N: np.ndarray, spread: float = 0.0) -> float:
    """The Sharpe ratio that the best of N configurations without skill is expected to show, per session.

    Args:
        tried_N: Sharpe ratios of all, NaN where none is known; the spread of the known ones is what chance can do.
        spread: what it is taken to be where fewer than two are known.
    """
    from skfolio.measures import expected_max_sharpe_ratio  # likewise

    known_N = tried_N[np.isfinite(tried_N)]
    return expected_max_sharpe_ratio(max(len(tried_N), 1), known_N.std(ddof=1) if len(known_N) > 1 else spread)


def deflated_sharpe(excess_T: np.ndarray, tried_N: np.ndarray) -> float:
    """DSR: the PSR against what the best of all configurations tried would show without skill. `tried_N` are ratios of the same
    quantity, NaN where none is known; where fewer than two are known, their spread is that of independent ones."""
    return probabilistic_sharpe(excess_T, expected_highest_sharpe(tried_N, 1 / np.sqrt(len(excess_T))))


def effective_trials(returns_TN: np.ndarray) -> int:
    """Number of different bets among the configurations: clusters of average linkage, cut where the correlation is 0.5."""
    from scipy.cluster.hierarchy import fcluster, linkage  # likewise
    from scipy.spatial.distance import squareform  # likewise

    moving_TN = returns_TN[:, returns_TN.std(axis=0) > 1e-12]
    if moving_TN.shape[1] < 2:
        return moving_TN.shape[1]
    distance_NN = np.clip(1 - np.corrcoef(moving_TN, rowvar=False), 0, 2)
    np.fill_diagonal(distance_NN, 0)
    tree = linkage(squareform(distance_NN, checks=False), "average")
    return int(fcluster(tree, 1 - SAME_BET, "distance").max())


def overfitting_logits(returns_TK: np.ndarray, blocks: int = CSCV_BLOCKS) -> np.ndarray:
    """CSCV: for each way to halve the blocks, the logit of the out-of-sample rank of the in-sample winner, logit_C.

    Sums and sums of squares of each block are enough for a Sharpe ratio of any union of blocks. Leading sessions that do not
    fill a block are left out.
    """
    length = len(returns_TK) // blocks
    strategies = returns_TK.shape[1]
    if len(returns_TK) < SHORTEST or strategies < 2:
        return np.zeros(0)
    blocks_SLK = returns_TK[len(returns_TK) - length * blocks :].reshape(blocks, length, strategies)
    sum_SK, square_SK = blocks_SLK.sum(axis=1), (blocks_SLK**2).sum(axis=1)
    halves = np.array(list(combinations(range(blocks), blocks // 2)))
    chosen_CS = np.zeros((len(halves), blocks))
    np.put_along_axis(chosen_CS, halves, 1.0, axis=1)
    inside_CK = _sharpe_of_sums(chosen_CS @ sum_SK, chosen_CS @ square_SK, length * blocks // 2)
    outside_CK = _sharpe_of_sums((1 - chosen_CS) @ sum_SK, (1 - chosen_CS) @ square_SK, length * blocks // 2)
    winner_C = inside_CK.argmax(axis=1)
    of_winner_C1 = np.take_along_axis(outside_CK, winner_C[:, None], axis=1)
    ties_C = (outside_CK == of_winner_C1).sum(axis=1)  # itself among them
    rank_C = (outside_CK < of_winner_C1).sum(axis=1) + (ties_C + 1) / 2
    share_C = rank_C / (strategies + 1)
    return np.log(share_C / (1 - share_C))


def probability_of_overfitting(logits_C: np.ndarray) -> float:
    """PBO: how often the in-sample winner is in the lower half out of sample. NaN without splits."""
    return float((logits_C <= 0).mean()) if len(logits_C) else float("nan")


def _sharpe_of_sums(sum_CK: np.ndarray, square_CK: np.ndarray, count: int) -> np.ndarray:
    """Per session; 0 where nothing moves, so that cash is neither best nor worst."""
    mean_CK = sum_CK / count
    variance_CK = (square_CK - count * mean_CK**2) / (count - 1)
    moves_CK = variance_CK > 1e-16
    return np.where(moves_CK, mean_CK / np.sqrt(np.where(moves_CK, variance_CK, 1.0)), 0.0)


def information(
    forecast_KN: Sequence[np.ndarray], outcome_KN: Sequence[np.ndarray], *, ranks: bool, lags: int = 0
) -> dict[str, float]:
    """IC, or RankIC with `ranks`: the mean cross-sectional correlation of forecast and outcome, by column of `forecast_quality`.

    Args:
        lags: decisions by which outcomes overlap, at least horizon - 1 (Newey and West 1987, Bartlett weights).

    Returns:
        mean; ratio: ICIR, mean per standard deviation over decisions, not annualised; t of the mean, and low and high of its 95 %
        interval, with Newey-West errors; decisions.
    """
    series_K = np.array([_correlation(f, o, ranks) for f, o in zip(forecast_KN, outcome_KN, strict=True)])
    series_K = series_K[np.isfinite(series_K)]
    found = dict.fromkeys(("mean", "ratio", "t", "low", "high"), float("nan")) | {"decisions": len(series_K)}
    if len(series_K) < 3:
        return found
    mean, spread, error = float(series_K.mean()), float(series_K.std(ddof=1)), newey_west_error(series_K, lags)
    if spread > 0:
        found |= {"ratio": mean / spread, "t": mean / error}
    return found | {"mean": mean, "low": mean - 1.96 * error, "high": mean + 1.96 * error}


def forecast_quality(
    forecast: Callable[[MarketView], np.ndarray], setup: BacktestSetup, views: Sequence[MarketView]
) -> dict[str, dict[str, float]]:
    """IC and RankIC of a forecast of the next decision step's return, from the fill on."""
    stride = int(np.median(np.diff(setup.decisions))) if len(setup.decisions) > 1 else setup.end - min(setup.decisions)
    forecasts, outcomes = [], []
    for session, view in zip(setup.decisions, views, strict=True):
        start, assets_N = session + 1, view.asset_indices
        if start + stride > len(setup.panel.dates) - 1:
            continue
        returns_1NT, _ = setup.panel.returns_after(np.array([start]), assets_N[None], stride)
        known_N = view.present_N & (setup.panel.rows(start + stride, assets_N) >= 0)
        forecasts.append(np.where(known_N, forecast(view), np.nan))
        outcomes.append(np.where(known_N, np.log1p(returns_1NT.astype(np.float64)).sum(-1).ravel(), np.nan))
    # consecutive steps do not overlap; a lag of one covers the session between a decision and its fill
    found = {name: information(forecasts, outcomes, ranks=name == "rank_ic", lags=1) for name in ("ic", "rank_ic")}
    unknown = ("ratio", "t", "low", "high") if len(setup.dates_T) < SHORTEST else ()
    return {name: one | dict.fromkeys(unknown, float("nan")) for name, one in found.items()}


def _correlation(forecast_N: np.ndarray, outcome_N: np.ndarray, ranks: bool) -> float:
    from scipy.stats import rankdata  # likewise

    known_N = np.isfinite(forecast_N) & np.isfinite(outcome_N)
    if known_N.sum() < _LEAST_ASSETS:
        return float("nan")
    x_N, y_N = forecast_N[known_N], outcome_N[known_N]
    if min(np.ptp(x_N), np.ptp(y_N)) <= 1e-9:  # the same for all: nothing is ordered
        return float("nan")
    return float(np.corrcoef(*((rankdata(x_N), rankdata(y_N)) if ranks else (x_N, y_N)))[0, 1])


# Two strategies on the same sessions


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its interval, by Newey and West over a month."""

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
    """Of each session, log(1 + r) - 2.5 r^2 of the return r after costs, which is what planners maximise by default."""
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
