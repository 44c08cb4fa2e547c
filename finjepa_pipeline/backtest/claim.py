"""What may be said of a planner's skill: the one decision behind the card, the report, the terminal and the leaderboard.

Evidence of skill needs both: the 95 % interval of the Sharpe ratio minus that of 1/N lies above zero, and the deflated Sharpe
ratio of the return over 1/N is at least 0.95, whatever was tried before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finjepa_pipeline.backtest.metrics import BENCHMARK, SHORTEST

DSR_GOAL = 0.95
TOO_SHORT = f"the block is too short for an interval, {SHORTEST} sessions are needed"

Row = Mapping[str, Any]  # of the leaderboard: strategy, block, its dates, excess_sharpe, excess_low, excess_high, dsr


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
    """What is said on top of a leaderboard (rows of all blocks): of the planner that acts, which the validation block
    chose, and of strategies of the user's own. Where none was chosen, as over chained folds, of every planner."""
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
        f"On the validation block ({row['start_date']} to {row['end_date']}), which chose {acting}, the difference was "
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
