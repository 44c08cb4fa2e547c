"""Where sampling earns its time: objectives that a quadratic program cannot state, and by how much planners beat the QP there.

Of each objective the QP solves the nearest convex problem, its mean-variance part with spreads as the only costs, and keeps the
best by the true cost of that solution, shares of it, the present holdings, 1/N and cash. Reported are the dates on which a
planner found a plan that is better by more than a tie, by how many basis points of utility over the plan, and where the QP's plan
breaks a limit that the planner's keeps.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from benchmarks.worlds import worlds
from finjepa_model.data.panel import Panel
from finjepa_model.planners import make_planner
from finjepa_model.planning.objective import Objective
from finjepa_model.planning.plan import tie
from finjepa_model.planning.utility import parse_utility
from finjepa_model.world_model import WorldModel

BROKEN = 100.0  # a cost from which on a limit is broken
PLAIN = "log_growth - 2.5*variance"
# what is asked, the utility, changes of the rules
OBJECTIVES = (
    ("mean-variance: the QP states it", PLAIN, {}),
    ("impact of 10 billion dollars, capped", PLAIN, {"capital": 1e10}),
    ("drawdown", "log_growth - 2.5*variance - above(drawdown, 0.03)", {}),
    ("tail limit", f"{PLAIN}, cvar <= 0.05", {}),
    ("few positions of a least size", f"{PLAIN}, concentration >= 0.2", {"max_weight": 0.35}),
    ("invested, hedge on or off", f"{PLAIN}, gross >= 0.95", {}),
    ("short at least a fifth", f"{PLAIN}, short >= 0.2", {"allow_short": True}),
    ("disagreement of two seeds", f"{PLAIN} - 2*disagreement", {}),
    ("turnover limit", f"{PLAIN}, turnover <= 0.1", {}),
)
PLANNERS = ("mppi", "cem", "gradient")


def objectives(
    model: WorldModel, panel: Panel, dates: int = 10, assets: int = 20, others: Sequence[WorldModel] = ()
) -> None:
    """Print the table of one home; with other models their disagreement is priced too."""
    print("| objective | " + " | ".join(f"{name}: better on, by (mean; most), bp" for name in PLANNERS) + " |")
    print("|---|" + "---|" * len(PLANNERS))
    for what, text, changes in OBJECTIVES:
        if "capital" in changes and panel.liquidity is None:
            continue
        utility, cells = parse_utility(text), []
        ensemble = others if "disagreement" in text else ()
        if "disagreement" in text and not others:
            continue
        some = list(worlds(model, panel, dates, assets, replace(model.config.portfolio, **changes), "uneven", ensemble))
        costs = {name: np.zeros(len(some)) for name in ("qp", *PLANNERS)}
        for d, (world, space) in enumerate(some):
            for name, cost_D in costs.items():
                generator = torch.Generator().manual_seed(d)
                cost_D[d] = float(make_planner(name).plan(Objective(world, utility), space, None, generator).cost_B)
        for name in PLANNERS:
            feasible_D = (costs["qp"] < BROKEN) & (costs[name] < BROKEN)
            gain_D = 1e4 * (costs["qp"] - costs[name])[feasible_D]
            better = int((gain_D > 1e4 * tie(torch.from_numpy(costs["qp"][feasible_D])).numpy()).sum())
            saved = int(((costs["qp"] >= BROKEN) & (costs[name] < BROKEN)).sum())
            cell = f"{better} of {len(gain_D)}, {gain_D.mean():.2f}; {gain_D.max():.2f}" if len(gain_D) else "–"
            cells.append(cell + (f"; keeps the limit on {saved} more" if saved else ""))
        print(f"| {what}: `{text}` | {' | '.join(cells)} |", flush=True)
