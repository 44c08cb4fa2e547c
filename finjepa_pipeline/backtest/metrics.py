"""What a series of returns amounts to, and what may be claimed of it.

Evidence of skill needs both: the 95 % interval of the Sharpe ratio minus that of 1/N lies above zero, and the deflated Sharpe
ratio of the return over 1/N is at least 0.95, whatever was tried before. It is one decision for card, report, terminal and
leaderboard.

Formulas: Bacon, Practical Portfolio Performance Measurement; Sortino and Price 1994; Lo 2002; q = 252 sessions a year.
Shapes: T sessions, K strategies, D decisions. All returns are simple daily returns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

SESSIONS_PER_YEAR = 252
BENCHMARK = "equal_weight"  # 1/N, which every difference is measured against
# Sessions that an interval, a p-value or a deflated ratio needs: ten blocks of the bootstrap, of 21 sessions or more. With fewer
# the interval covers the truth too seldom (docs/results/backtest.md).
SHORTEST = 210
TOO_SHORT = f"the block is too short for an interval, {SHORTEST} sessions are needed"
DSR_GOAL = 0.95

Row = Mapping[str, Any]  # of the leaderboard: strategy, block, its dates, excess_sharpe, excess_low, excess_high, dsr


def measure(net_T: np.ndarray, gross_T: np.ndarray, turnover_T: np.ndarray) -> dict[str, float]:
    """The metrics of a strategy over a block, after costs, by column of the leaderboard (sql/backtest/schema.sql has the units).
    An undefined ratio (nothing ever moved, no drawdown) is NaN."""
    growth, drawdown = annual_return(net_T), max_drawdown(net_T)
    return {
        "sharpe": float(sharpe(net_T)),
        "sharpe_lo": lo_sharpe(net_T),
        "annual_return": growth,
        "annual_volatility": float(np.sqrt(SESSIONS_PER_YEAR) * net_T.std(ddof=1)),
        "max_drawdown": drawdown,
        "sortino": sortino(net_T),
        "calmar": growth / -drawdown if drawdown < 0 else float("nan"),
        "cvar_95": cvar(net_T),
        "hit_rate": float((net_T > 0).mean()),
        "annual_turnover": float(turnover_T.mean() * SESSIONS_PER_YEAR),
        "cost_drag": annual_return(gross_T) - growth,
        "n_days": len(net_T),
    }


def sharpe(excess_TX: np.ndarray) -> np.ndarray:
    """Annualised Sharpe ratio along the first axis: sqrt(q) mean / sd. NaN where nothing moves."""
    spread_X = excess_TX.std(axis=0, ddof=1)
    # A constant series leaves a spread of rounding errors, and a ratio of them would be astronomic.
    moves_X = spread_X > 1e-12
    ratio_X = excess_TX.mean(axis=0) / np.where(moves_X, spread_X, 1.0)
    return np.where(moves_X, np.sqrt(SESSIONS_PER_YEAR) * ratio_X, np.nan)


def lo_sharpe(excess_T: np.ndarray) -> float:
    """Annualised Sharpe ratio of autocorrelated returns (Lo 2002, equation 20): SR_d q / sqrt(q + 2 sum (q - k) rho_k).

    Up to min(20, T / 20) lags; autocorrelations within two standard errors of zero count as zero.
    """
    spread = excess_T.std(ddof=1)
    if spread <= 1e-12:
        return float("nan")
    centred_T, q = excess_T - excess_T.mean(), SESSIONS_PER_YEAR
    scale = q
    for lag in range(1, min(20, len(excess_T) // 20) + 1):
        rho = centred_T[lag:] @ centred_T[:-lag] / (centred_T @ centred_T)
        if abs(rho) > 2 / np.sqrt(len(excess_T)):
            scale += 2 * (q - lag) * rho
    return float(excess_T.mean() / spread * q / np.sqrt(scale)) if scale > 0 else float("nan")


def annual_return(returns_T: np.ndarray) -> float:
    """Geometric: (prod(1 + r))^(q/T) - 1."""
    return float(np.expm1(np.log1p(returns_T).sum() * SESSIONS_PER_YEAR / len(returns_T)))


def max_drawdown(returns_T: np.ndarray) -> float:
    """The lowest V / max V so far - 1; the wealth before the first session counts as a peak."""
    wealth_T = np.cumprod(1 + returns_T)
    return float((wealth_T / np.maximum.accumulate(np.maximum(wealth_T, 1.0)) - 1).min())


def sortino(returns_T: np.ndarray) -> float:
    """Annualised mean per downside deviation over all days."""
    downside = np.sqrt((np.minimum(returns_T, 0.0) ** 2).mean())
    return float(np.sqrt(SESSIONS_PER_YEAR) * returns_T.mean() / downside) if downside > 0 else float("nan")


def cvar(returns_T: np.ndarray) -> float:
    """Mean loss of the worst 5 % of days, rounded up; positive when it is a loss."""
    worst = int(np.ceil(0.05 * len(returns_T)))
    return float(-np.partition(returns_T, worst - 1)[:worst].mean())


def months_better(returns_T: np.ndarray, benchmark_T: np.ndarray, dates_T: np.ndarray) -> float:
    """Share of calendar months in which the compounded return is above the benchmark's."""
    _, month_T = np.unique(dates_T.astype("datetime64[M]"), return_inverse=True)
    growth_M, benchmark_M = (np.bincount(month_T, weights=np.log1p(series_T)) for series_T in (returns_T, benchmark_T))
    return float((growth_M > benchmark_M).mean())


def exposure(decisions: pl.DataFrame) -> dict[str, float]:
    """What was held on average over the decisions, by column of the leaderboard; effective_n is NaN where nothing was.

    Args:
        decisions: by date and entity: `held`, signed shares of wealth at the end of the decision's step, and `hedge`.
    """
    by_date = decisions.group_by("date", maintain_order=True).agg(  # means are the same to the last bit
        pl.col("held").abs().sum().alias("gross"),
        pl.col("held").sum().alias("net"),
        (pl.col("held") ** 2).sum().alias("square"),
        pl.col("hedge").first(),
    )
    gross_D, net_D, square_D, hedge_D = (by_date[name].to_numpy() for name in ("gross", "net", "square", "hedge"))
    held_D = gross_D > 1e-9
    return {
        "effective_n": float((gross_D[held_D] ** 2 / square_D[held_D]).mean()) if held_D.any() else float("nan"),
        "gross_exposure": float(gross_D.mean()),
        "net_exposure": float(net_D.mean()),
        "hedged": float((hedge_D > 0.5).mean()),
    }


def calibration(imagined_D: np.ndarray, volatility_D: np.ndarray, realised_D: np.ndarray) -> dict[str, float]:
    """How the log growth and volatility that a planner imagined of each decision step relate to the growth that came, net of
    costs; NaN where the imagined growth never moves.

    Returns:
        correlation: over decisions; slope: of realised on imagined, 1 for a calibrated planner; covered: share of the decisions
        within two imagined standard deviations of the imagined growth.
    """
    if len(imagined_D) < 3 or imagined_D.std() < 1e-12 or realised_D.std() < 1e-12:
        return dict.fromkeys(("correlation", "slope", "covered"), float("nan"))
    correlation = float(np.corrcoef(imagined_D, realised_D)[0, 1])
    return {
        "correlation": correlation,
        "slope": float(correlation * realised_D.std() / imagined_D.std()),
        "covered": float((np.abs(realised_D - imagined_D) <= 2 * volatility_D).mean()),
    }


@dataclass(frozen=True)
class Claim:
    """`verdict` is `Evidence of skill`, `No evidence of skill` or `Worse than 1/N`; `text` says what it rests on."""

    verdict: str
    text: str

    def __str__(self) -> str:
        return f"{self.verdict}: {self.text}"


def has_skill(row: Row | None) -> bool:
    """Whether there is evidence of skill over 1/N in a row of the leaderboard; never on the validation block, which chooses."""
    if row is None or row["strategy"] == BENCHMARK or row["block"] == "validation":
        return False
    return (row["excess_low"] or 0) > 0 and (row["dsr"] or 0) >= DSR_GOAL


def claim_of(row: Row | None, strategy: str) -> Claim:
    """What a row of the leaderboard says of a strategy; None where it has none."""
    if row is None or row["excess_sharpe"] is None:
        return Claim("No evidence of skill", f"{strategy} has no Sharpe ratio on the test block to compare with 1/N.")
    where = f"on the {row['block']} block from {row['start_date']} to {row['end_date']}, net of costs"
    difference = f"the Sharpe ratio of {strategy} minus that of 1/N is {row['excess_sharpe']:+.2f}"
    if row["excess_low"] is None:
        return Claim("No evidence of skill", f"{difference} {where}; {TOO_SHORT}.")
    found = f"{difference} (95 % interval {row['excess_low']:+.2f} to {row['excess_high']:+.2f}) {where}"
    if row["excess_low"] > 0:
        skill, deflated = has_skill(row), "unknown" if row["dsr"] is None else f"{row['dsr']:.2f}"
        return Claim(
            "Evidence of skill" if skill else "No evidence of skill",
            f"{found}. The interval does not cover 0, {'and' if skill else 'but'} the deflated Sharpe ratio, which counts "
            f"everything that was tried, is {deflated} (at least {DSR_GOAL:g} is needed).",
        )
    if row["excess_high"] < 0:
        return Claim("Worse than 1/N", f"{found}.")
    return Claim("No evidence of skill", f"{found}. The interval covers 0.")


def headline(rows: Sequence[Row], acting: str | None) -> str:
    """What is said on top of a leaderboard (rows of all blocks): of the planner that acts, and of strategies of the user's own.
    Where none acts, as over chained folds, of every planner."""
    test = {row["strategy"]: row for row in rows if row["block"] == "test"}
    named = [acting] if acting else [name for name, row in test.items() if row["kind"] == "planner"]
    named += [name for name, row in test.items() if row["kind"] == "user"]
    if not named:
        return "No planner was backtested, so nothing can be said about skill."
    said = [str(claim_of(test.get(name), name)) for name in named]
    said.insert(1, on_validation(rows, acting))
    return " ".join(filter(None, said))


def on_validation(rows: Sequence[Row], acting: str | None) -> str:
    """What the block that chose a planner said of it; empty where that is not known."""
    row = next((row for row in rows if row["block"] == "validation" and row["strategy"] == acting), None)
    if row is None or row["excess_low"] is None:
        return ""
    return (
        f"On the validation block ({row['start_date']} to {row['end_date']}), the difference for {acting} was "
        f"{row['excess_sharpe']:+.2f} ({row['excess_low']:+.2f} to {row['excess_high']:+.2f})."
    )


def same_return_for_all(metrics: Mapping[str, Any]) -> str | None:
    """The first thing to know of a checkpoint whose read-out, by its metrics.json, expects the same return of every asset; None
    where it does not."""
    readout = metrics.get("readout")
    if readout is None or readout.get("weighted"):
        return None
    t = f" (t-value out of sample {readout['t_value']:.2f})" if "t_value" in readout else ""
    return (
        f"The model expects the same return of every asset: nothing that could order them was confirmed in training{t}. "
        "Its planner chooses risk, turnover and cash, not stocks that would rise more."
    )
