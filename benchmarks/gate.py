"""Power of the champion gate: how often it is right about two forecasters whose difference is known.

    python -m benchmarks.gate [--nights 200] [--assets 30]

Each night has its own market: one factor, log volatilities of all assets that move together and apart (AR(1), .98 a session), and
normal returns. A forecaster knows the expected log volatility over the horizon and the true correlations, and adds an error of
its own to the first, AR(1) in time, whose size is its standard deviation in log volatility; one of .1 costs about .02 of QLIKE.
Errors are `short` or `lasting`: three tenths of their variance is common to all assets and they keep .92 of themselves a session,
as measured between HAR, EWMA and a trained model on the sample; or half of it and .98. Prints Markdown: for lengths of the common
validation block and pairs of errors, the share of nights in which the challenger replaces the champion, the champion stays, and
the challenger is found worse. With equal errors the champion has to stay; with a smaller one the challenger has to win.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from scipy.signal import lfilter

from finjepa_model.nn.risk import HORIZONS, RiskForecast, normal_quantiles
from finjepa_model.training.forecast_comparison import EVERY, ForecastLosses, compare_forecasts, losses_of_date

PACE, FACTOR, TARGET, PAST = 0.98, 0.35, 21, 252
ERRORS = {"short": (0.92, 0.3), "lasting": (0.98, 0.5)}  # what is kept a session, share of the variance in common
PAIRS = ((0.1, 0.1), (0.2, 0.2), (0.15, 0.1), (0.2, 0.1), (0.25, 0.1))  # error of the champion, of the challenger


def slow(random: np.random.Generator, shape: tuple[int, ...], size: float, pace: float = PACE) -> np.ndarray:
    """AR(1) along the first axis, with standard deviation `size`."""
    shocks = random.standard_normal((500, *shape[1:])), random.standard_normal(shape)
    return lfilter([size * np.sqrt(1 - pace**2)], [1, -pace], np.concatenate(shocks), axis=0)[500:]


def market(random: np.random.Generator, sessions: int, assets: int) -> tuple[np.ndarray, np.ndarray]:
    """Daily returns and log volatilities, [sessions, assets]."""
    log_TN = np.log(0.015) + slow(random, (sessions, 1), 0.3) + slow(random, (sessions, assets), 0.3)
    shocks_TN = np.sqrt(FACTOR) * random.standard_normal((sessions, 1))
    shocks_TN = shocks_TN + np.sqrt(1 - FACTOR) * random.standard_normal((sessions, assets))
    return np.exp(log_TN) * shocks_TN, log_TN


def forecaster(random: np.random.Generator, log_TN: np.ndarray, error: float, kind: str) -> np.ndarray:
    """Forecast log volatility over the horizon after each session: its expectation, Jensen's term included, and an error."""
    shrink = np.mean(PACE ** np.arange(1, TARGET + 1))
    level = np.log(0.015)
    # the mean square of a log-normal whose logarithm still has this variance
    unknown = 0.18 * np.mean(1 - PACE ** (2 * np.arange(1, TARGET + 1)))
    pace, shared = ERRORS[kind]
    common = slow(random, (len(log_TN), 1), error * shared**0.5, pace)
    own = slow(random, log_TN.shape, error * (1 - shared) ** 0.5, pace)
    return level + shrink * (log_TN - level) + unknown + common + own


def losses(returns_TN: np.ndarray, forecast_TN: np.ndarray) -> ForecastLosses:
    sessions = np.arange(PAST, len(returns_TN) - TARGET, EVERY)
    assets = returns_TN.shape[1]
    correlation_1MM = torch.full((1, assets + 1, assets + 1), FACTOR)
    correlation_1MM.diagonal(dim1=1, dim2=2).fill_(1.0)
    returns_NT, rows = torch.from_numpy(returns_TN.T), []
    for t in sessions.tolist():
        volatility_1M = torch.from_numpy(np.append(np.exp(forecast_TN[t]), 1.0)).float()[None]
        volatility_1MV = volatility_1M.unsqueeze(-1).expand(-1, -1, len(HORIZONS))
        present_1N = torch.ones(1, assets, dtype=torch.bool)
        one = RiskForecast(volatility_1MV, correlation_1MM, normal_quantiles(), present_1N)
        after_NT = returns_NT[:, t + 1 : t + 1 + TARGET]
        rows.append(losses_of_date(one, returns_NT[:, t - PAST + 1 : t + 1], after_NT, t))
    table = np.array(rows)
    return ForecastLosses(sessions, table[:, :-1], table[:, -1])


def power(
    nights: int, assets: int, kinds: Sequence[str] = tuple(ERRORS), lengths: Sequence[int] = (250, 500, 1000)
) -> None:
    """Print the table."""
    columns = (
        "errors",
        "sessions",
        "champion",
        "challenger",
        "difference in QLIKE",
        "replaces",
        "stays",
        "found worse",
    )
    print(f"{nights} nights, {assets} assets.\n\n| {' | '.join(columns)} |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for kind in kinds:
        for sessions in lengths:
            for pair in PAIRS:
                found, apart = [], []
                for night in range(nights):
                    random = np.random.default_rng([night, sessions])
                    returns_TN, log_TN = market(random, PAST + sessions, assets)
                    champion, challenger = (
                        losses(returns_TN, forecaster(random, log_TN, error, kind)) for error in pair
                    )
                    found.append(compare_forecasts(challenger, champion))
                    apart.append((challenger.losses_DK - champion.losses_DK)[:, 0].mean())
                better, worse = (np.mean([getattr(one, name) for one in found]) for name in ("better", "worse"))
                print(
                    f"| {kind} | {sessions} | {pair[0]} | {pair[1]} | {np.mean(apart):+.3f} | {better:.1%} | "
                    f"{1 - better - worse:.1%} | {worse:.1%} |",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=200)
    parser.add_argument("--assets", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    power(options.nights, options.assets)


if __name__ == "__main__":
    main()
