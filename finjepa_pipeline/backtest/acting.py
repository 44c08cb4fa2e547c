"""Who acts for a checkpoint: the planner that the operator chose, unless another one has evidence that it is worth more.

FINJEPA_PLANNER names the choice, a planner or one with its utility ("mppi | log_growth - 5*variance"). Evidence is a paired
interval on the validation block: of the mean difference of net utility in a session, log(1 + r) - 2.5 r^2 of the returns r after
costs, which is what planners maximise by default. It must lie above zero at a level that counts every configuration tried on
some of these sessions (Bonferroni: 95 % of one, 99.5 % of ten), with errors by Newey and West over a month. A Sharpe ratio of so
few years tells luck from skill too rarely to choose by it.
"""

from dataclasses import dataclass

import duckdb
import polars as pl

from finjepa_model.planner_strategies import planner_of
from finjepa_pipeline.backtest.metrics import SHORTEST
from finjepa_pipeline.backtest.paired import Interval, utility_difference
from finjepa_pipeline.backtest.results import tried_ratios
from finjepa_pipeline.backtest.strategies import not_planners

_TESTED = """
    SELECT strategy, date, net_return FROM main.backtest_returns
    WHERE checkpoint = $checkpoint AND data_version = $data_version AND block = 'validation'
        AND NOT list_contains($not_planners, string_split(strategy, ' with ')[-1]) AND strategy NOT LIKE '%:%'
    ORDER BY strategy, date
"""


@dataclass(frozen=True)
class Acting:
    """`strategy`: who acts, None where that is open; `text`: why, and what is known of each other planner."""

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
