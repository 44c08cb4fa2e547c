"""How often the 95 % interval of a difference of Sharpe ratios covers the true one, by the length of the block.

    python benchmarks/interval_coverage.py --lengths 55,105,210,420,1000 --repetitions 1000

For each length: pairs of return series whose true Sharpe ratios are equal, with volatility that clusters (GARCH(1,1), Student's
t with 5 degrees of freedom), a correlation of 0.9 (a planner and 1/N) or 0.5, and autocorrelation of 0.1 in both. The interval
is the one of the leaderboard. Printed: the share of the intervals that cover 0; the share that lie above 0, which would be called
better (2.5 % is right); the median width.
"""

import argparse

import numpy as np

from finjepa_pipeline.backtest.inference import sharpe_intervals

_ALPHA, _BETA, _VARIANCE, _AUTOCORRELATION, _FREEDOM = 0.08, 0.90, 0.01**2, 0.1, 5
_SHARPE, _BURN = 0.5, 250


def pair(rng: np.random.Generator, sessions: int, correlation: float) -> np.ndarray:
    """Daily returns [T, 2] of two strategies with the same true Sharpe ratio in one market."""
    spread = np.sqrt((_FREEDOM - 2) / _FREEDOM)
    shock_T2 = rng.standard_t(_FREEDOM, (sessions + _BURN, 3)) * spread
    weights_2 = np.sqrt(correlation), np.sqrt(1 - correlation)
    unit_T2 = weights_2[0] * shock_T2[:, [0]] + weights_2[1] * shock_T2[:, 1:]
    returns_T2 = np.empty_like(unit_T2)
    variance, before_2 = _VARIANCE, np.zeros(2)
    for t, unit_2 in enumerate(unit_T2):
        moved_2 = np.sqrt(variance) * unit_2
        variance = _VARIANCE * (1 - _ALPHA - _BETA) + _ALPHA * float((moved_2**2).mean()) + _BETA * variance
        before_2 = _AUTOCORRELATION * before_2 + moved_2
        returns_T2[t] = before_2
    return returns_T2[_BURN:] + _SHARPE / np.sqrt(252) * np.sqrt(_VARIANCE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="55,105,210,420,1000")
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1000, help="Of the bootstrap.")
    chosen = parser.parse_args()
    print("| sessions | correlation | covers | above 0 | median width |\n|--:|--:|--:|--:|--:|")
    for sessions in map(int, chosen.lengths.split(",")):
        for correlation in (0.9, 0.5):
            rng = np.random.default_rng([sessions, int(100 * correlation)])
            bounds = []
            for _ in range(chosen.repetitions):
                found = sharpe_intervals(pair(rng, sessions, correlation), 0, samples=chosen.samples)
                bounds.append((found.excess_low_K[1], found.excess_high_K[1]))
            low_R, high_R = np.array(bounds).T
            covers, above = ((low_R <= 0) & (high_R >= 0)).mean(), (low_R > 0).mean()
            width = np.median(high_R - low_R)
            print(f"| {sessions:,} | {correlation:.1f} | {covers:.1%} | {above:.1%} | {width:.1f} |", flush=True)


if __name__ == "__main__":
    main()
