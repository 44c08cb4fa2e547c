"""What decisions depend on and what they are worth: tables of docs/results, pages decisions, acting and planning.

    python -m benchmarks.decisions HOME [HOME ...] [--dates 10] [--seeds 5] [--assets 20]

Each HOME is a FINJEPA_HOME with a panel and a checkpoint, the newest of which is taken; two are worked on at once. For each:

- Seeds: every planner decides at its defaults on dates that are spread over the last half of the panel, from cash and from 1/N,
  by several seeds. Mean and largest one-way difference between two seeds (shares of wealth), mean cost of the plan, that of the
  QP's plan for the same utility, how often the plan was worse than the QP's, holding or 1/N by more than 1e-6, and processor
  milliseconds.
- What portfolio latents mean, and where plans towards a goal end (`benchmarks/portfolio_latents.py`).
- Objectives that a QP cannot state (`benchmarks/objectives.py`).
- Turnover and holds, the hedge and short signals, and what each part is worth (`benchmarks/worth.py`).

At the end the power of the champion gate over fewer nights than `python -m benchmarks.gate` takes.
"""

import argparse
import contextlib
import io
import itertools
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.gate import power
from benchmarks.objectives import objectives
from benchmarks.worth import worth
from finjepa_model import FinJEPA
from finjepa_model.actions import PortfolioAction
from finjepa_model.data.batches import observe
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import history_needed
from finjepa_model.planner_strategies import MarketImagination
from finjepa_model.planners import make_planner
from finjepa_model.planning.goals import goal_latent
from finjepa_model.planning.objective import CUMULATIVE, GOAL, Objective, PlanningWorld
from finjepa_model.planning.plan import ActionSpace, Plan, action_of_positions
from finjepa_model.planning.utility import Utility, parse_utility
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import current_checkpoint

HORIZON = 2
CASES: tuple[tuple[str, Utility], ...] = (
    ("qp", CUMULATIVE),
    ("mppi", CUMULATIVE),
    ("gradient", CUMULATIVE),
    ("cem", CUMULATIVE),
    ("mppi", parse_utility("log_growth - 5*variance - 0.002*turnover")),
    ("mppi", parse_utility("log_growth - cvar - 0.1*drawdown, gross <= 0.8")),
    ("cem", GOAL),
)


def held(plan: Plan) -> torch.Tensor:
    action = plan.action
    return (action.weights_XN * action.signals_XN)[0]


def worlds(model: FinJEPA, panel: Panel, dates: int, assets: int, invested: bool):
    """A world and a space for each date; from cash, or from 1/N."""
    history, config = history_needed(model.config), model.config
    simulator = PortfolioSimulator(config.portfolio)
    for date in np.linspace(len(panel.dates) // 2, len(panel.dates) - 1, dates).astype(int):
        chosen = panel.eligible_assets(int(date), history)
        chosen = chosen[np.unique(np.linspace(0, len(chosen) - 1, assets).astype(int))]
        seen = observe(panel, np.array([date]), chosen[None], config.model.context_steps, config)
        imagination = model.imagine(seen, HORIZON)
        size = (1, len(chosen))
        state = simulator.start(size, dtype=torch.float32)
        if invested:
            equal = PortfolioAction(torch.full(size, 1 / size[1]), torch.ones(size), torch.zeros(1))
            state, _ = simulator.trade(state, equal, torch.ones(size), torch.ones(size, dtype=torch.bool))
        goal = goal_latent(imagination, simulator, config.model.stride)
        world = PlanningWorld.of(imagination, simulator, state, config.model.stride, goal_BD=goal)
        yield world, ActionSpace.from_config(config.portfolio, imagination.present_BN, HORIZON)


def row(name: str, utility: Utility, some: list, seeds: int) -> str:
    apart, costs, of_qp, worse, seconds = [], [], [], 0, 0.0
    for world, space in some:
        cost, plans = Objective(world, utility), []
        now_BHN = world.state.holdings_XN.unsqueeze(1).expand(-1, HORIZON, -1)
        simple = [float(cost(action_of_positions(x, space, 0.0))) for x in (now_BHN, space.equal_weights())]
        if utility.slopes(("log_growth", "variance", "turnover", "cost")) is not None:
            of_qp.append(float(make_planner("qp").plan(cost, space).cost_B))
            simple.append(of_qp[-1])
        for seed in range(seeds):
            began = time.process_time()
            plans.append(make_planner(name).plan(cost, space, None, torch.Generator().manual_seed(seed)))
            seconds += time.process_time() - began
        apart += [0.5 * float((held(a) - held(b)).abs().sum()) for a, b in itertools.combinations(plans, 2)]
        costs += [float(plan.cost_B) for plan in plans]
        worse += sum(float(plan.cost_B) > min(simple) + 1e-6 for plan in plans)
    qp = f"{1e4 * np.mean(of_qp):.3f}" if of_qp else "–"
    return (
        f"| {name} | {utility.text} | {np.mean(apart):.3f} | {np.max(apart):.3f} | {1e4 * np.mean(costs):.3f} | {qp} | "
        f"{worse} of {len(costs)} | {1000 * seconds / len(costs):.0f} |"
    )


def seeds_table(model: FinJEPA, panel: Panel, dates: int, assets: int, seeds: int) -> None:
    for invested in (False, True):
        some = list(worlds(model, panel, dates, assets, invested))
        print(f"\nFrom {'1/N' if invested else 'cash'}; costs in 1e-4.\n")
        print("| planner | utility | between seeds, mean | largest | cost | of the QP | worse than simple | ms |")
        print("|---|---|--:|--:|--:|--:|--:|--:|")
        for name, utility in CASES:
            print(row(name, utility, some, seeds))


def table(section: str, home: str, dates: int, assets: int, seeds: int) -> str:
    """A section of one home, as Markdown."""
    torch.set_num_threads(1)
    settings = Settings(home=Path(home).absolute())
    panel, imagination = Panel.open(current_panel(settings)), MarketImagination(current_checkpoint(settings))
    said, began = io.StringIO(), time.process_time()
    with contextlib.redirect_stdout(said):
        span = f"{panel.dates[0]} to {panel.dates[-1]}"
        print(f"\n## {section}: {Path(home).name}, {len(panel.assets)} assets, {span}\n")
        if section == "Seeds":
            seeds_table(imagination.model, panel, dates, assets, seeds)
        elif section == "Portfolio latents":
            from benchmarks.portfolio_latents import tables  # here: it takes its worlds from this module

            print(tables(imagination.model, panel, dates))
        elif section == "Objectives that a QP cannot state":
            objectives(imagination.model, panel, dates, assets)
        else:
            worth(panel, imagination, assets)
        print(f"\n{time.process_time() - began:.0f} s of a core.")
    return said.getvalue()


SECTIONS = ("Trades and parts", "Objectives that a QP cannot state", "Seeds", "Portfolio latents")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("homes", nargs="+", metavar="HOME")
    parser.add_argument("--dates", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--assets", type=int, default=20)
    options = parser.parse_args()
    asked = options.dates, options.assets, options.seeds
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        tasks = [(section, home) for section in SECTIONS for home in options.homes]
        for found in [pool.submit(table, *task, *asked) for task in tasks]:
            print(found.result(), flush=True)
    print("\n## Power of the gate\n")
    torch.set_num_threads(1)
    power(40, 30, ("short",), (1000,))


if __name__ == "__main__":
    main()
