"""What the acting planner trades and why: turnover and holds, the hedge and short signals, and what each part of it is worth.

Backtests of `qp` over the validation and the test block of a checkpoint, which it was not trained on, five years of them at
most. Differences are paired by session: net utility with Newey-West intervals, volatility and expected shortfall (mean of the
worst 5 % of days) with a stationary bootstrap.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl

from finjepa_model.config import PortfolioConfig
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import checkpoint_splits, history_needed
from finjepa_model.market_view import MarketView
from finjepa_model.planner_strategies import FinJEPAStrategy, MarketImagination
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_pipeline.backtest.controls import Controls
from finjepa_pipeline.backtest.engine import BacktestSetup, StrategyResult, simulate, without_costs
from finjepa_pipeline.backtest.inference import MIN_BLOCK, Interval, bootstrap, parts_of, rows_of, utility_difference
from finjepa_pipeline.backtest.metrics import SESSIONS_PER_YEAR, cvar
from finjepa_pipeline.backtest.strategies import one_over_n

MOST_SESSIONS = 1260
INVESTED = "qp | log_growth - 2.5*variance, gross >= 0.95"  # a mandate to stay invested
AFRAID = "qp | log_growth - 10*variance, gross >= 0.95"
CONTROLS = ("untrained", "ewma", "ledoit_wolf", "shuffled_actions")


class Bench:
    """One checkpoint on one panel; all strategies share its forecasts."""

    def __init__(self, panel: Panel, imagination: MarketImagination, assets: int):
        config, rules = imagination.config, imagination.config.portfolio
        assert imagination.folder is not None
        first = max(checkpoint_splits(imagination.folder, panel).validation[0], len(panel.dates) - MOST_SESSIONS)
        over = partial(BacktestSetup.over, stride=config.model.stride, n_assets=assets, window=history_needed(config))
        self.setup = over(panel, (first, len(panel.dates)), rules)
        self.views: Sequence[MarketView] = self.setup.views()
        self.imagination, self.rules, self.panel = imagination, rules, panel

    def run(self, planner: str = "qp", rules: PortfolioConfig | None = None) -> StrategyResult:
        """A planner under other rules of trading; its own where None."""
        imagination, rules = self.imagination, rules or self.rules
        kept = imagination.config, imagination.simulator
        imagination.config = replace(imagination.config, portfolio=rules)
        imagination.simulator = PortfolioSimulator(rules)
        try:
            return simulate(FinJEPAStrategy(planner, imagination), replace(self.setup, costs=rules), self.views)
        finally:
            imagination.config, imagination.simulator = kept


def volatility(net_T: np.ndarray) -> float:
    """Annualised."""
    return float(net_T.std() * SESSIONS_PER_YEAR**0.5)


def difference(statistic: Callable[[np.ndarray], float], net_T: np.ndarray, other_T: np.ndarray) -> Interval:
    """A statistic of one strategy less that of another, with a 95 % interval of the paired stationary bootstrap."""

    def apart(both_T2: np.ndarray) -> float:
        return statistic(both_T2[:, 0]) - statistic(both_T2[:, 1])

    both_T2 = np.column_stack([net_T, other_T])
    low, high = np.percentile(bootstrap(both_T2, apart, block=MIN_BLOCK, samples=500), [2.5, 97.5])
    return Interval(apart(both_T2), float(low), float(high))


def said(x: Interval) -> str:
    return f"{100 * x.mean:+.2f} ({100 * x.low:+.2f} to {100 * x.high:+.2f})"


def yearly(x_T: np.ndarray) -> float:
    return float(x_T.mean() * SESSIONS_PER_YEAR)


def trading(bench: Bench, qp: StrategyResult) -> None:
    """Turnover, holds, and what costs take."""
    free = bench.run(rules=without_costs(bench.rules))
    loss = utility_difference(qp.net_T, free.net_T)
    print(
        "\n| sessions | decisions | with orders | turnover a year | costs, % a year | utility less free trading, % a year |"
    )
    print("|--:|--:|--:|--:|--:|--:|")
    print(
        f"| {len(qp.net_T)} | {len(qp.ordered_K)} | {int(qp.ordered_K.sum())} | {yearly(qp.turnover_T):.2f} | "
        f"{100 * yearly(qp.cost_T):.3f} | {said(loss)} |"
    )


def switches(bench: Bench, qp: StrategyResult) -> None:
    """The hedge and short signals: allowed less not allowed."""
    no_hedge, shorts = replace(bench.rules, allow_hedge=False), replace(bench.rules, allow_short=True)
    pairs = (
        ("hedge", qp, bench.run(rules=no_hedge)),
        ("hedge, always invested", bench.run(INVESTED), bench.run(INVESTED, no_hedge)),
        ("hedge, always invested, risk aversion 20", bench.run(AFRAID), bench.run(AFRAID, no_hedge)),
        ("short signals", bench.run(rules=shorts), qp),
    )
    columns = (
        "in use, % of decisions",
        "volatility, % a year",
        "shortfall of a day, %",
        "costs, % a year",
        "net utility, % a year",
    )
    print(f"\n| allowed less not allowed | {' | '.join(columns)} |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, with_it, without in pairs:
        used_K = (
            (with_it.weights_KR * (with_it.signals_KR < 0)).sum(1) > 1e-6 if "short" in name else with_it.hedges_K > 0
        )
        net = with_it.net_T, without.net_T
        print(
            f"| {name} | {100 * used_K.mean():.0f} | {said(difference(volatility, *net))} | {said(difference(cvar, *net))} | "
            f"{100 * (yearly(with_it.cost_T) - yearly(without.cost_T)):+.3f} | {said(utility_difference(*net))} |",
            flush=True,
        )


def parts(bench: Bench, qp: StrategyResult) -> None:
    """What each part of `qp` is worth."""
    controls = Controls(bench.imagination)
    found = [simulate(controls.make(f"qp with {name}"), bench.setup, bench.views) for name in CONTROLS]
    found += [qp, simulate(one_over_n(), bench.setup, bench.views)]
    frames = [pl.DataFrame({"strategy": r.strategy, "date": r.dates_T, "net_return": r.net_T}) for r in found]
    print("\n| part | difference | net utility a year (95 %) | realised volatility (95 %) |\n|---|---|--:|--:|")
    for row in rows_of(parts_of(pl.concat(frames), "qp")):
        print(f"| {' | '.join(row)} |")


def worth(panel: Panel, imagination: MarketImagination, assets: int = 20) -> None:
    """Print the three tables of one home."""
    bench = Bench(panel, imagination, assets)
    qp = bench.run()
    for table in (trading, switches, parts):
        table(bench, qp)
