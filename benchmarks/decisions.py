"""Whether decisions depend on the data or on a seed: one-way differences between seeds, cost beside the QP's, milliseconds.

    python -m benchmarks.decisions HOME CHECKPOINT [--dates 20] [--seeds 10] [--assets 20]

HOME is a FINJEPA_HOME with a feature panel that CHECKPOINT (a folder, or an id of the home) fits. Every planner decides at its
defaults on dates that are spread over the last half of the panel, from cash and from 1/N, by several seeds. Prints Markdown:
mean and largest one-way difference between two seeds (shares of wealth), mean cost of the plan, that of the QP's plan for the
same utility, how often the plan was worse than the QP's, holding or 1/N by more than 1e-6, and processor milliseconds a decision.
"""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import torch

from finjepa_model.actions import PortfolioAction
from finjepa_model.data.batches import observe
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import history_needed
from finjepa_model.planners import make_planner
from finjepa_model.planning.goals import goal_latent
from finjepa_model.planning.objective import CUMULATIVE, GOAL, Objective, PlanningWorld
from finjepa_model.planning.plan import ActionSpace, Plan, action_of_positions
from finjepa_model.planning.utility import Utility, parse_utility
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.world_model import FinJEPA
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import named_checkpoint

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home")
    parser.add_argument("checkpoint")
    parser.add_argument("--dates", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--assets", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(home=Path(options.home).absolute())
    panel = Panel.open(current_panel(settings))
    model = FinJEPA.from_pretrained(named_checkpoint(settings, options.checkpoint).folder)
    for invested in (False, True):
        some = list(worlds(model, panel, options.dates, options.assets, invested))
        print(f"\nFrom {'1/N' if invested else 'cash'}; costs in 1e-4.\n")
        print("| planner | utility | between seeds, mean | largest | cost | of the QP | worse than simple | ms |")
        print("|---|---|--:|--:|--:|--:|--:|--:|")
        for name, utility in CASES:
            print(row(name, utility, some, options.seeds), flush=True)


if __name__ == "__main__":
    main()
