"""How sure one may be: intervals of Sharpe ratios and of their differences.

Shapes: T sessions, K strategies, S bootstrap samples. Returns are simple daily returns.
"""

from dataclasses import dataclass

import numpy as np

from finjepa_pipeline.backtest.metrics import sharpe

MIN_BLOCK = 21  # sessions: volatility clusters for about a month, whatever the mean's autocorrelation says


@dataclass(frozen=True)
class SharpeIntervals:
    """Annualised Sharpe ratios of K strategies, and of each minus the benchmark's; percentile intervals of a paired
    bootstrap.

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
    bootstrap = StationaryBootstrap(block, excess_TK, seed=seed)
    sharpe_SK = np.stack([sharpe(np.asarray(data[0])) for data, _ in bootstrap.bootstrap(samples)])
    excess_SK = sharpe_SK - sharpe_SK[:, [benchmark]]
    sharpe_K = sharpe(excess_TK)
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
    """Mean block of the stationary bootstrap, in sessions."""
    from arch.bootstrap import optimal_block_length

    optimal = float(optimal_block_length(returns_T)["stationary"].iloc[0]) if returns_T.std() > 0 else MIN_BLOCK
    return min(max(MIN_BLOCK, int(np.ceil(np.nan_to_num(optimal)))), len(returns_T))
