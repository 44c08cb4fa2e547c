"""Decides with the td branch of a checkpoint, in a process of its own, since the Hub client reads its environment once.

Usage: python -m tests.pipeline.publishing.td_decider DIR_OR_REPO UTILITY; one JSON object.
"""

import json
import sys

import torch

from finjepa_model import FinJEPA
from finjepa_model.planners import make_planner
from finjepa_model.planning import ActionSpace, parse_utility
from finjepa_model.planning.imagination import PlanningWorld
from finjepa_model.planning.objective import Objective
from finjepa_model.portfolio import PortfolioSimulator
from tests.model.markets import random_observation

DATES, ASSETS = 3, 6


def main() -> None:
    model = FinJEPA.from_pretrained(sys.argv[1])
    simulator = PortfolioSimulator(model.config.portfolio)
    imagination = model.imagine(random_observation(model.config, dates=DATES, assets=ASSETS), 2)
    state = simulator.start((DATES, ASSETS), dtype=torch.float32)
    world = PlanningWorld.of(imagination, simulator, state, model.config.model.stride)
    space = ActionSpace.from_config(model.config.portfolio, imagination.present_BN, 2)
    action = make_planner("td").plan(Objective(world, parse_utility(sys.argv[2])), space).action
    print(json.dumps({name: value.tolist() for name, value in vars(action).items()}))  # noqa: T201


if __name__ == "__main__":
    main()
