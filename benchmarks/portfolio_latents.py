"""What portfolio latents mean: whether they are as far apart as portfolios, and whether a plan towards a goal ends at it.

    python -m benchmarks.portfolio_latents HOME CHECKPOINT [--dates 20]

HOME is a FINJEPA_HOME with a feature panel, CHECKPOINT a folder or an id of the home. Random plans of 64 portfolios of 20 assets
on dates of the last half of the panel, from 1/N. Prints Markdown: the correlation over pairs of portfolios on a date of the
distance of their latents with that of their holdings (one-way, the hedge included), expected volatilities and costs, each in its
own standard deviation; R2 of linear read-outs of rolled-out latents, fitted on the first half of the dates and measured on the
others, for exposure, expected volatility and cost by the exact mechanics; and, where trading is free, how far `cem` ends from the
holdings that its goal encodes (one-way), and from an exposure that a user names (0.3, at a volatility of 10 % a year).
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.worlds import HORIZON, worlds
from finjepa_model import FinJEPA
from finjepa_model.actions import PortfolioAction
from finjepa_model.data.panel import Panel
from finjepa_model.planners import make_planner
from finjepa_model.planning.goals import RISK_AVERSION, target_latent
from finjepa_model.planning.objective import GOAL, Objective, PlanningWorld, quantities
from finjepa_model.planning.plan import held
from finjepa_model.planning.utility import parse_goal, parse_utility
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.training.behaviour import random_action
from finjepa_model.world_model import WorldModel
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import named_checkpoint

PORTFOLIOS, ASSETS = 64, 20
NAMED = "-goal(exposure=0.3, volatility=0.1)"
READ = ("net", "volatility", "cost")


def random_plans(world: PlanningWorld) -> PortfolioAction:
    """[1, C, H, ...] of the behaviour policy, hedges allowed."""
    present = world.imagination.present_BN.expand(PORTFOLIOS, -1)
    rules, steps, last = replace(world.simulator.config, allow_hedge=True), [], None
    for _ in range(HORIZON):
        last = random_action(present, last, rules)
        steps.append(last)
    return PortfolioAction(
        *(torch.stack(part, 1)[None] for part in zip(*(vars(a).values() for a in steps), strict=True))
    )


def correlation(latents_CD: torch.Tensor, holdings_CN: torch.Tensor, read_CR: torch.Tensor) -> float:
    """Of distances of latents and of portfolios, over all pairs."""
    one, other = torch.triu_indices(len(latents_CD), len(latents_CD), 1)
    apart = [0.5 * (holdings_CN[one] - holdings_CN[other]).abs().sum(-1)]
    apart += [(read_CR[one, r] - read_CR[other, r]).abs() for r in (1, 2)]
    distance = torch.stack([part / part.std() for part in apart]).square().sum(0).sqrt()
    return float(np.corrcoef((latents_CD[one] - latents_CD[other]).norm(dim=-1), distance)[0, 1])


def read_out(latents_XCD: torch.Tensor, read_XCR: torch.Tensor) -> np.ndarray:
    """R2 of a linear read-out on the second half of the dates."""
    half = len(latents_XCD) // 2
    inputs = torch.cat([latents_XCD, torch.ones_like(latents_XCD[..., :1])], -1).double()
    fit, judge = (part.flatten(0, 1) for part in (inputs[:half], inputs[half:]))
    wanted, truth = (part.flatten(0, 1).double() for part in (read_XCR[:half], read_XCR[half:]))
    weights = torch.linalg.solve(fit.T @ fit + 1e-6 * torch.eye(fit.shape[1]), fit.T @ wanted)
    return (1 - (judge @ weights - truth).square().mean(0) / truth.var(0)).numpy()


def goals(world: PlanningWorld, space, seed: int) -> tuple[float, float]:
    """How far `cem` ends from the goal's holdings, one-way, and from a named exposure, where trading is free."""
    config = world.simulator.config
    free = replace(
        config, cost_bps=0.0, hedge_cost_bps=0.0, impact=0.0, tier_spread_bps=(0.0,) * len(config.tier_spread_bps)
    )
    simulator = PortfolioSimulator(free)
    world = PlanningWorld.of(world.imagination, simulator, world.state, world.sessions, goal_BD=world.goal_BD)
    named = parse_utility(NAMED)
    [name] = named.goals
    target = target_latent(world.imagination, simulator, world.sessions, parse_goal(name))
    world = replace(world, goals={name: target})
    plans = [
        make_planner("cem").plan(Objective(world, utility), space, None, torch.Generator().manual_seed(seed))
        for utility in (GOAL, named)
    ]
    best_N = world.moments.best_holdings(RISK_AVERSION, free.max_weight)[0]
    return 0.5 * float((held(plans[0].action)[0, :-1] - best_N).abs().sum()), abs(
        float(held(plans[1].action)[:, :-1].sum()) - 0.3
    )


@torch.no_grad()
def tables(model: WorldModel, panel: Panel, dates: int) -> str:
    torch.manual_seed(0)
    found, latents, read, ends = [], [], [], []
    for seed, (world, space) in enumerate(worlds(model, panel, dates, ASSETS, model.config.portfolio, "1/N")):
        rollout = world.roll(random_plans(world))
        values = quantities(world, rollout, READ)
        read_CHR = torch.stack([values[name][0] for name in READ], -1)
        latents_CHD = world.imagination.portfolio_path(world.state, rollout)[0]
        both_CN = torch.cat([rollout.holdings_BCHN[0, :, 0], rollout.hedge_BCH[0, :, :1]], -1)
        found.append(correlation(latents_CHD[:, 0], both_CN, read_CHR[:, 0]))
        latents.append(latents_CHD)
        read.append(read_CHR)
        ends.append(goals(world, space, seed))
    latents_XCHD, read_XCHR = torch.stack(latents), torch.stack(read)
    lines = ["| | |", "|---|--:|", f"| correlation of distances | {np.mean(found):.3f} |"]
    for step in range(HORIZON):
        scores = read_out(latents_XCHD[:, :, step], read_XCHR[:, :, step])
        lines.append(f"| R2 of exposure, volatility, cost, step {step + 1} | {', '.join(f'{x:.3f}' for x in scores)} |")
    for what, values in zip(("holdings of the goal, one-way", "named exposure"), zip(*ends, strict=True), strict=True):
        lines.append(f"| `cem` from the {what}: mean, largest | {np.mean(values):.3f}, {np.max(values):.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home")
    parser.add_argument("checkpoint")
    parser.add_argument("--dates", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(home=Path(options.home).absolute())
    model = FinJEPA.from_pretrained(named_checkpoint(settings, options.checkpoint).folder)
    print(tables(model, Panel.open(current_panel(settings)), options.dates))


if __name__ == "__main__":
    main()
