"""What decisions depend on and what they are worth: tables of docs/results, pages decisions, acting and planning.

    python -m benchmarks.decisions HOME [HOME ...] [--dates 20] [--seeds 10] [--assets 20]

Each HOME is a FINJEPA_HOME with a panel and a checkpoint, the newest of which is taken; two are worked on at once. For each:

- Seeds: every planner decides at its defaults on dates that are spread over the last half of the panel, from cash and from an
  uneven book, by several seeds. Mean and largest one-way difference between two seeds (shares of wealth, the hedge included), the
  largest difference to a decision on the same assets in reverse order, the mean cost of the plans, how often a plan was worse
  than the QP's, holding or 1/N by more than 1e-6, and processor milliseconds a decision, all dates at once.
- What portfolio latents mean, and where plans towards a goal end (`benchmarks/portfolio_latents.py`).
- Objectives that a QP cannot state (`benchmarks/objectives.py`), with a second checkpoint of the home their disagreement too.
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
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.gate import power
from benchmarks.objectives import objectives
from benchmarks.portfolio_latents import tables
from benchmarks.worlds import HORIZON, Book, Place, dates_and_assets, world_of
from benchmarks.worth import worth
from finjepa_model.data.panel import Panel
from finjepa_model.planner_strategies import MarketImagination
from finjepa_model.planners import make_planner
from finjepa_model.planning.objective import CUMULATIVE, GOAL, Objective
from finjepa_model.planning.plan import ActionSpace, Plan, action_of_positions, held
from finjepa_model.planning.utility import Utility, parse_utility
from finjepa_model.world_model import WorldModel
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import current_checkpoint

# utility, planners, and changes of the rules of trading
MIXED = {"allow_short": True, "allow_hedge": True}
CASES: tuple[tuple[Utility, tuple[str, ...], dict[str, bool]], ...] = (
    (CUMULATIVE, ("qp", "mppi", "cem", "gradient"), {}),
    (parse_utility("log_growth - 5*variance - 0.002*turnover"), ("qp", "mppi", "cem"), {}),
    (CUMULATIVE, ("qp", "mppi", "cem"), {"allow_short": True, "allow_hedge": False}),
    (parse_utility("log_growth - cvar - 0.1*drawdown, gross <= 0.8"), ("mppi", "cem"), {}),
    (GOAL, ("cem",), {}),
    (CUMULATIVE, ("qp", "mppi", "cem", "gradient"), MIXED),
    (parse_utility("log_growth - 2.5*variance, short >= 0.2"), ("mppi", "cem", "gradient"), MIXED),
    (GOAL, ("cem",), MIXED),
)


def decided(name: str, cost: Objective, space: ActionSpace, seed: int) -> Plan:
    return make_planner(name).plan(cost, space, None, torch.Generator().manual_seed(seed))


def rows(utility: Utility, planners: tuple[str, ...], places: tuple[Place, Place], reverse_N: torch.Tensor, seeds: int):
    """A line a planner; the second place has the assets of the first in another order."""
    (world, space), (mixed, mixed_space) = places
    cost, mixed_cost = Objective(world, utility), Objective(mixed, utility)
    now_BHN = world.state.holdings_XN.unsqueeze(1).expand(-1, HORIZON, -1)
    simple = [cost(action_of_positions(x, space, 0.0))[:, 0] for x in (now_BHN, space.equal_weights())]
    if "qp" in planners:
        simple.append(decided("qp", cost, space, 0).cost_B)
    for name in planners:
        began = time.process_time()
        plans = [decided(name, cost, space, seed) for seed in range(1 if name == "qp" else seeds)]
        spent = 1000 * (time.process_time() - began) / len(plans) / len(plans[0].cost_B)
        books_SBM, costs_SB = (
            torch.stack([held(plan.action) for plan in plans]),
            torch.stack([plan.cost_B for plan in plans]),
        )
        apart = [0.5 * (a - b).abs().sum(-1) for a, b in itertools.combinations(books_SBM, 2)]
        apart_XB = torch.stack(apart) if apart else torch.zeros_like(costs_SB)
        worse = int((costs_SB > torch.stack(simple).amin(0) + 1e-6).sum())
        moved_BM = held(decided(name, mixed_cost, mixed_space, 0).action)[:, reverse_N]
        moved = 0.5 * float((moved_BM - books_SBM[0]).abs().sum(-1).max())
        yield (
            f"| {name} | {apart_XB.mean():.3f} | {apart_XB.amax():.3f} | {moved:.3f} | {1e4 * costs_SB.mean():.3f} | "
            f"{worse} of {costs_SB.numel()} | {spent:.0f} |"
        )


def seeds_table(model: WorldModel, panel: Panel, dates: int, assets: int, seeds: int) -> None:
    dates_B, assets_BN = dates_and_assets(model, panel, dates, assets)
    reverse_N = torch.tensor([*range(assets_BN.shape[1])[::-1], assets_BN.shape[1]])
    books: tuple[Book, Book] = ("cash", "uneven")
    print(
        "| utility | from | planner | between seeds, mean | largest | other order | cost, 1e-4 | worse than simple | ms |"
    )
    print("|---|---|---|--:|--:|--:|--:|--:|--:|")
    for book in books:
        for utility, planners, changes in CASES:
            rules = replace(model.config.portfolio, **changes)
            places = (
                world_of(model, panel, dates_B, assets_BN, rules, book),
                world_of(model, panel, dates_B, assets_BN[:, ::-1].copy(), rules, "cash"),
            )
            state, order_N = places[0][0].state, reverse_N[:-1]
            turned = replace(
                state, **{name: getattr(state, name)[..., order_N] for name in ("positions_XN", "signals_XN")}
            )
            places = places[0], (replace(places[1][0], state=turned), places[1][1])
            free = " and ".join(name.removeprefix("allow_") for name, on in changes.items() if on)
            for line in rows(utility, planners, places, reverse_N, seeds):
                print(f"| {utility.text}{f', {free} allowed' if free else ''} | {book} {line}", flush=True)


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
            print(tables(imagination.model, panel, dates))
        elif section == "Objectives that a QP cannot state":
            beside = sorted(path.parent for path in settings.checkpoints.glob("*/model.safetensors"))
            others = [WorldModel.from_pretrained(folder) for folder in beside if folder != imagination.folder][:1]
            objectives(imagination.model, panel, max(dates // 2, 1), assets, others)
        else:
            worth(panel, imagination, assets)
        print(f"\n{time.process_time() - began:.0f} s of a core.")
    return said.getvalue()


SECTIONS = ("Trades and parts", "Objectives that a QP cannot state", "Seeds", "Portfolio latents")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("homes", nargs="+", metavar="HOME")
    parser.add_argument("--dates", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=10)
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
