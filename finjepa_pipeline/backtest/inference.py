"""How sure one may be: intervals of Sharpe ratios and of their differences, a test of the whole table, and what could
have been seen at all.

Shapes: T sessions, K strategies, S bootstrap samples. Returns are simple daily returns.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from finjepa_pipeline.backtest.metrics import SESSIONS_PER_YEAR, SHORTEST, sharpe

MIN_BLOCK = 21  # sessions: volatility clusters for about a month, whatever the mean's autocorrelation says


@dataclass(frozen=True)
class SharpeIntervals:
    """Annualised Sharpe ratios of K strategies, and of each minus the benchmark's; percentile intervals of a paired
    bootstrap, NaN where there are fewer than `SHORTEST` sessions.

    Attributes:
        better_K: share of the samples in which the strategy's Sharpe ratio is above the benchmark's.
    """

    sharpe_K: np.ndarray
    low_K: np.ndarray
    high_K: np.ndarray
    excess_K: np.ndarray
    excess_low_K: np.ndarray
    excess_high_K: np.ndarray
    better_K: np.ndarray
    block: float
    samples: int


def sharpe_intervals(
    excess_TK: np.ndarray, benchmark: int, *, samples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> SharpeIntervals:
    """Stationary bootstrap (Politis and Romano 1994) of whole rows, so that strategies stay paired with the benchmark.

    The mean block is the optimal length for the benchmark's returns (Politis and White 2004), and at least 21 sessions.
    It depends on the benchmark
    only, and so does the random stream: an interval does not change when another strategy joins the table.

    Args:
        excess_TK: daily returns over cash.
        benchmark: column of the benchmark.
    """
    from arch.bootstrap import StationaryBootstrap

    block = block_length(excess_TK[:, benchmark])
    sharpe_K = sharpe(excess_TK)
    if len(excess_TK) < SHORTEST:
        sharpe_SK = np.full((1, len(sharpe_K)), np.nan)
    else:
        bootstrap = StationaryBootstrap(block, excess_TK, seed=seed)
        sharpe_SK = np.stack([sharpe(np.asarray(data[0])) for data, _ in bootstrap.bootstrap(samples)])
    excess_SK = sharpe_SK - sharpe_SK[:, [benchmark]]
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    low_K, high_K = np.percentile(sharpe_SK, tails, axis=0)
    excess_low_K, excess_high_K = np.percentile(excess_SK, tails, axis=0)
    return SharpeIntervals(
        sharpe_K=sharpe_K,
        low_K=low_K,
        high_K=high_K,
        excess_K=sharpe_K - sharpe_K[benchmark],
        excess_low_K=excess_low_K,
        excess_high_K=excess_high_K,
        better_K=np.where(np.isnan(excess_SK).any(0), np.nan, (excess_SK > 0).mean(0)),
        block=block,
        samples=samples,
    )


def block_length(returns_T: np.ndarray) -> int:
    """Mean block of the stationary bootstrap, in sessions; a tenth of them at most, so that there are ten blocks."""
    from arch.bootstrap import optimal_block_length

    optimal = float(optimal_block_length(returns_T)["stationary"].iloc[0]) if returns_T.std() > 0 else MIN_BLOCK
    longest = max(MIN_BLOCK, len(returns_T) // 10)
    return min(max(MIN_BLOCK, int(np.ceil(np.nan_to_num(optimal)))), longest, len(returns_T))


def superior_predictive_ability(
    returns_TK: np.ndarray, benchmark: int, *, samples: int = 1000, seed: int = 0
) -> float | None:
    """p-value of Hansen's test (2005, consistent version) that no strategy has a higher mean return than the benchmark.

    None where there is nobody to compare, nobody that differs from the benchmark, or fewer than `SHORTEST` sessions.
    """
    from arch.bootstrap import SPA

    others_TK = np.delete(returns_TK, benchmark, axis=1)
    differs_K = (others_TK - returns_TK[:, [benchmark]]).std(axis=0) > 1e-12
    if not differs_K.any() or len(returns_TK) < SHORTEST:
        return None
    block = block_length(returns_TK[:, benchmark])
    test = SPA(
        -returns_TK[:, benchmark], -others_TK[:, differs_K], block_size=block, reps=samples, bootstrap="stationary",
        seed=seed,
    )  # fmt: skip
    test.compute()
    return float(np.asarray(test.pvalues)[1])  # lower, consistent, upper


@dataclass(frozen=True)
class Power:
    """What a block of this length can show of a difference of Sharpe ratios.

    Attributes:
        error: standard error of a Sharpe ratio; difference_error: of a difference; both annualised.
        detectable: true gain in annualised Sharpe ratio that is found in 80 % of such blocks at 5 % one-sided; NaN where there
            are fewer than `SHORTEST` sessions.
    """

    years: float
    error: float
    difference_error: float
    detectable: float


def power(excess_TK: np.ndarray, strategy: int, benchmark: int) -> Power:
    """se(SR) = sqrt((1 + SR_d^2/2) / years), SR_d per session (Lo 2002), and sqrt(2 (1 - rho) / years) for a difference
    of two that correlate by rho (Jobson and Korkie 1981, small ratios).
    """
    years = len(excess_TK) / SESSIONS_PER_YEAR
    pair_T2 = excess_TK[:, [strategy, benchmark]]
    moving = bool((pair_T2.std(axis=0) > 1e-12).all())
    rho = float(np.corrcoef(pair_T2, rowvar=False)[0, 1]) if moving else 0.0
    daily = float(np.nan_to_num(sharpe(excess_TK[:, strategy]))) / np.sqrt(SESSIONS_PER_YEAR)
    difference = float(np.sqrt(2 * max(1 - rho, 0.0) / years))
    return Power(
        years=years,
        error=float(np.sqrt((1 + daily**2 / 2) / years)),
        difference_error=difference,
        detectable=float((norm.ppf(0.95) + norm.ppf(0.80)) * difference)
        if len(excess_TK) >= SHORTEST
        else float("nan"),
    )


def one_sided_p(returns_T: np.ndarray, benchmark_T: np.ndarray, *, samples: int = 2000, seed: int = 0) -> float:
    """p-value that the mean return is not above the benchmark's: stationary bootstrap of the centred difference."""
    from arch.bootstrap import StationaryBootstrap

    difference_T = returns_T - benchmark_T
    if difference_T.std() <= 1e-12:
        return 1.0
    bootstrap = StationaryBootstrap(block_length(difference_T), difference_T - difference_T.mean(), seed=seed)
    mean_S = np.array([np.asarray(data[0]).mean() for data, _ in bootstrap.bootstrap(samples)])
    return float((mean_S >= difference_T.mean()).mean())
