"""Milliseconds of one decision: the td branch beside planners that search with the same utility.

    python benchmarks/zero_shot_time.py --presets tiny,small,base --assets 8,20,100 --compile

Worlds are random and nothing is trained, for neither changes what is computed. The planners are as they are in a backtest:
their defaults, two decision steps ahead, warm-started. The imagination of the market, which all of them need, is not counted.
Times are those of the one thread that computes, so that other work on the machine counts for little.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from finjepa_model.config import preset
from finjepa_model.planning import ActionSpace, make_planner, parse_utility
from finjepa_model.planning.objectives import Objective
from finjepa_model.planning.rollout import PlanningWorld
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.world_model import FinJEPA
from finjepa_pipeline.backtest.market_imagination import HORIZON
from tests.model.markets import random_observation

UTILITY = parse_utility("log_growth - 2.5*variance")
SEARCHERS = ("cem", "mppi")


def milliseconds(decide: Callable[[], object], repeats: int) -> float:
    """Median, after a few that do not count."""
    seconds = []
    for number in range(repeats + 5):
        started = time.thread_time()
        decide()
        if number >= 5:
            seconds.append(time.thread_time() - started)
    return 1e3 * float(np.median(seconds))


def cases(model: FinJEPA, assets: int, compiled: Callable | None) -> Iterator[tuple[str, float]]:
    """Name and milliseconds of each way to decide."""
    seen = random_observation(model.config, dates=1, steps=model.config.model.context_steps, assets=assets)
    imagination = model.imagine(seen, HORIZON)
    simulator = PortfolioSimulator(model.config.portfolio)
    state = simulator.start((1, assets), dtype=torch.float32)
    world = PlanningWorld.of(imagination, simulator, state, model.config.model.stride)
    objective = Objective(world, UTILITY)
    space = ActionSpace.from_config(model.config.portfolio, imagination.present_BN, HORIZON)
    eager = make_planner("td")
    yield "td", milliseconds(lambda: eager.act(objective), 200)  # type: ignore[attr-defined]
    if compiled is not None:
        yield "td, compiled", milliseconds(lambda: compiled(objective), 200)
    for name in SEARCHERS:
        planner, generator = make_planner(name), torch.Generator().manual_seed(0)
        warm = planner.plan(objective, space, None, generator)

        def search(planner=planner, warm=warm, generator=generator) -> object:
            return planner.plan(objective, space, warm, generator)

        yield name, milliseconds(search, 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default="tiny,small,base")
    parser.add_argument("--assets", default="8,20,100")
    parser.add_argument("--compile", action="store_true", help="the td branch compiled as well: half a minute each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.presets.split(","):
        config = preset(name)
        torch.manual_seed(0)
        model = FinJEPA(replace(config, td=replace(config.td, enabled=True))).eval()
        assert model.zero_shot is not None
        branch = model.zero_shot
        branch.remember(torch.randn_like(branch.relabelled_RZ), torch.randn_like(branch.relabelled_RQ))
        compiled = make_planner("td", compile=True).act if arguments.compile else None  # type: ignore[attr-defined]
        for assets in map(int, arguments.assets.split(",")):
            found = dict(cases(model, assets, compiled))
            ratios = {f"{s} / {td}": found[s] / ms for td, ms in found.items() if td[:2] == "td" for s in SEARCHERS}
            cells = [f"{ms:.2f}" for ms in found.values()] + [f"{ratio:.0f}" for ratio in ratios.values()]
            if assets == int(arguments.assets.split(",")[0]) and name == arguments.presets.split(",")[0]:
                print("| preset | assets | " + " | ".join([*found, *ratios]) + " |")
                print("|---|--:|" + "--:|" * len(cells))
            print(f"| `{name}` | {assets} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
