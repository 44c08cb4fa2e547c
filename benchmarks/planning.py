"""Planning: seconds per decision beside the CEM of stable-worldmodel that drives the same dynamics, growth, and a backtest.

    python benchmarks/planning.py [--peer FOLDER] [--quick]

`--peer` is a site-packages folder with stable-worldmodel, gymnasium and loguru (they are no dependency of this project);
without it the peer is left out. Its solver gets the same model, and a cost that rolls market and portfolio for every
candidate, as a solver does that knows nothing of exogenous markets. Prints Markdown.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from finjepa_model import FinJEPA
from finjepa_model.actions import PortfolioAction
from finjepa_model.config import FinJEPAConfig, preset
from finjepa_model.planners import make_planner
from finjepa_model.planning.goals import goal_latent
from finjepa_model.planning.objective import GOAL, Objective, PlanningWorld, Rollout
from finjepa_model.planning.plan import ActionSpace
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.world_model import Imagination
from tests.model.markets import random_observation

SAMPLES, ITERATIONS, ELITES, HORIZON, ASSETS = 300, 15, 30, 4, 20


def small() -> FinJEPAConfig:
    """The preset `small` on 22 channels; untrained weights take as long as trained ones."""
    config = preset("small")
    channels = tuple(f"channel_{i}" for i in range(22))
    return replace(config, model=replace(config.model, channels=channels, market_channels=("market",)))


class BlockKey:
    """A model, what it has seen of some dates, and portfolios that hold 1/N."""

    def __init__(self, dates: int, horizon: int = HORIZON, assets: int = ASSETS):
        self.config, self.horizon = small(), horizon
        torch.manual_seed(0)
        self.model = FinJEPA(self.config).eval().requires_grad_(False)
        self.observation = random_observation(self.config, dates, self.config.model.context_steps, assets)
        self.simulator = PortfolioSimulator(self.config.portfolio)
        seen, market = self.model.encode(self.observation)
        self.tokens = torch.cat([seen, market.unsqueeze(-2)], dim=-2)
        weights = torch.full((dates, assets), 1 / assets)
        everyone = torch.ones(dates, assets, dtype=torch.bool)
        equal = PortfolioAction(weights, torch.ones_like(weights), torch.zeros(dates))
        start = self.simulator.start((dates, assets), dtype=torch.float32)
        self.state, _ = self.simulator.trade(start, equal, torch.ones_like(weights), everyone)

    def world(self) -> tuple[PlanningWorld, ActionSpace]:
        imagination = self.model.imagine(self.observation, self.horizon)
        stride = self.config.model.stride
        goal = goal_latent(imagination, self.simulator, stride)
        world = PlanningWorld.of(imagination, self.simulator, self.state, stride, goal_BD=goal)
        return world, ActionSpace.from_config(self.config.portfolio, imagination.present_BN, self.horizon)

    def plan(self, name: str = "cem", utility=GOAL, **settings) -> None:
        """Imagine, and plan: a decision from what was observed to what is done."""
        world, space = self.world()
        generator = torch.Generator().manual_seed(0)
        make_planner(name, **settings).plan(Objective(world, utility), space, None, generator)


def rolled_in_full(case: BlockKey, world: PlanningWorld, actions: PortfolioAction) -> torch.Tensor:
    """The cost_BC of candidates, each with a roll-out of the whole market of its own."""
    dates, candidates = actions.hedge_X.shape[:2]
    rollout = world.roll(actions)
    now = world.imagination
    assert isinstance(now, Imagination)

    def each(x: torch.Tensor) -> torch.Tensor:  # one date a candidate
        return x.repeat_interleave(candidates, dim=0)

    model, present = case.model, each(now.present_BN)
    tokens = each(case.tokens)
    if case.horizon > 1:
        tokens = torch.cat([tokens, model.rollout(tokens, present, case.horizon - 1)], dim=1)
    _, memory = model.predictor.market(tokens, present)
    everything = replace(
        now,
        beta_BN=each(now.beta_BN),
        present_BN=present,
        covariance_BHMM=each(now.covariance_BHMM),
        assets_BHND=tokens[:, now.first_step :, :-1],
        carriers_BNE=each(now.carriers_BNE),
        memory=memory,
    )

    def alone(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(dates * candidates, 1, *x.shape[2:])

    parts = {name: alone(x) for name, x in vars(rollout).items() if name != "actions"}
    path = everything.portfolio_path(world.state.map(each), Rollout(actions.map(alone), **parts))
    goal = each(world.goal_BD)[:, None, None]
    return everything.position(path - goal).square().mean(-1).sum(-1).view(dates, candidates)


def seconds(run: Callable[[], object], repeats: int = 2) -> float:
    """The fastest of some runs after one that warms up."""
    run()
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def matmul_rate() -> float:
    """float32 GFLOP/s at 2048^3."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / seconds(lambda: a @ b, 5) / 1e9


def peer_solver(folder: Path):
    """stable-worldmodel's CEM, without the environments and data that its package imports."""
    sys.path.append(str(folder))
    package = types.ModuleType("stable_worldmodel")
    package.__path__ = [str(folder / "stable_worldmodel")]
    sys.modules["stable_worldmodel"] = package
    from gymnasium.spaces import Box
    from stable_worldmodel.solver.cem import CEMSolver

    return CEMSolver, Box


class PeerModel:
    """The same dynamics behind the peer's protocol: raw numbers in, a cost for each candidate out."""

    def __init__(self, case: BlockKey):
        self.case = case
        self.world, self.space = case.world()

    def get_cost(self, info_dict: dict, candidates: torch.Tensor) -> torch.Tensor:
        del info_dict  # one date: the world knows it
        weights, signals, hedge = candidates.split([ASSETS, ASSETS, 1], dim=-1)
        actions = PortfolioAction(
            self.space.project(weights), (signals > 0).to(weights.dtype), (hedge[..., 0] > 0).to(weights.dtype)
        )
        return rolled_in_full(self.case, self.world, actions)


def beside_the_peer(folder: Path | None, rate: float, iterations: int) -> list[str]:
    settings = {"samples": SAMPLES, "iterations": iterations, "elites": ELITES}
    lines = [
        "| | s a decision | times ours (64 dates) | GFLOP a decision | share of the matmul rate |",
        "|---|--:|--:|--:|--:|",
    ]
    ours = {}
    for dates in (64, 1):
        case = BlockKey(dates)
        with FlopCounterMode(display=False) as counted:
            case.plan(**settings)
        work = counted.get_total_flops() / dates / 1e9
        ours[dates] = seconds(lambda case=case: case.plan(**settings), 1) / dates
        share = work / ours[dates] / rate
        lines.append(
            f"| ours, {dates} dates in a batch | {ours[dates]:.3f} | {ours[dates] / ours[64]:.2f} | {work:.2f} | {share:.2f} |"
        )
    if folder is None:
        return [*lines, "", "The peer was not measured: no --peer."]
    solver_class, box = peer_solver(folder)
    case = BlockKey(1)
    model = PeerModel(case)
    solver = solver_class(model, num_samples=SAMPLES, n_steps=iterations, topk=ELITES)
    plan_config = types.SimpleNamespace(horizon=HORIZON, action_block=1)
    solver.configure(action_space=box(-1, 1, (1, 2 * ASSETS + 1)), n_envs=1, config=plan_config)

    def solve() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            solver.solve({"date": torch.zeros(1, 1)})

    begin = time.perf_counter()
    with FlopCounterMode(display=False) as counted:
        solve()
    work, theirs = counted.get_total_flops() / 1e9, time.perf_counter() - begin
    lines.append(
        f"| stable-worldmodel CEM, full roll-out | {theirs:.3f} | {theirs / ours[64]:.1f} | {work:.2f} | "
        f"{work / theirs / rate:.2f} |"
    )
    generator = torch.Generator().manual_seed(1)
    actions = PortfolioAction(
        torch.rand(1, 64, HORIZON, ASSETS, generator=generator).softmax(-1),
        torch.randint(0, 2, (1, 64, HORIZON, ASSETS), generator=generator).float(),
        torch.randint(0, 2, (1, 64, HORIZON), generator=generator).float(),
    )
    gap = (Objective(model.world, GOAL)(actions) - rolled_in_full(case, model.world, actions)).abs().max().item()
    lines += [
        "",
        f"Per decision ours takes {theirs / ours[64]:.1f} times less with 64 dates in a batch, {theirs / ours[1]:.1f} "
        f"with one. The factored cost differs from the full one by at most {gap:.1e}.",
    ]
    return lines


def growth() -> list[str]:
    lines = []
    for title, values, build in (
        ("samples", (75, 150, 300, 600), lambda v: (BlockKey(16), {"samples": v})),
        ("horizon", (1, 2, 4, 8), lambda v: (BlockKey(16, horizon=v), {"samples": SAMPLES})),
        ("assets", (5, 20, 100, 500), lambda v: (BlockKey(4, assets=v), {"samples": SAMPLES})),
    ):
        taken = []
        for value in values:
            case, settings = build(value)
            dates = case.observation.present_BN.shape[0]
            taken.append(
                seconds(lambda c=case, s=settings: c.plan(iterations=ITERATIONS, elites=ELITES, **s), 1) / dates
            )
        lines += [
            f"| {title} | " + " | ".join(str(v) for v in values) + " |",
            "|---|" + "--:|" * len(values),
            "| s a decision | " + " | ".join(f"{t:.3f}" for t in taken) + " |",
            "",
        ]
    return lines


def planners() -> list[str]:
    from finjepa_model.planning.objective import CUMULATIVE

    case, lines = BlockKey(16), ["| planner, default settings | s a decision: goal | mean-variance |", "|---|--:|--:|"]
    for name in ("cem", "mppi", "gradient", "random", "qp"):
        taken = [
            "–"
            if name == "qp" and utility is GOAL
            else f"{seconds(lambda n=name, u=utility: case.plan(n, u), 1) / 16:.3f}"
            for utility in (GOAL, CUMULATIVE)
        ]
        lines.append(f"| {name} | {taken[0]} | {taken[1]} |")
    return lines


def backtest(decisions: int = 1000) -> list[str]:
    """A walk of CEM through decisions of 20 assets, one after the other, as `finjepa backtest` does it."""
    from finjepa_model.planner_strategies import FinJEPAStrategy, MarketImagination
    from finjepa_pipeline.backtest.engine import BacktestSetup, simulate
    from tests.pipeline.backtest.handmade_panel import noise, write_panel

    config = small()
    history = 400
    days = history + 5 * decisions + 1
    random = np.random.default_rng(0)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        panel = write_panel(
            Path(folder) / "panel",
            noise(days, ASSETS),
            features_DAF=random.standard_normal((days, ASSETS, len(config.model.channels))),
        )
        torch.manual_seed(0)
        FinJEPA(config).save_pretrained(Path(folder) / "model")
        setup = BacktestSetup.over(
            panel, (history, days), config.portfolio, stride=5, n_assets=ASSETS, window=history - 1
        )
        for name in ("cem", "mppi"):
            imagination = MarketImagination(Path(folder) / "model")
            begin = time.perf_counter()
            views = setup.views()
            simulate(FinJEPAStrategy(name, imagination), setup, views)
            lines.append(f"- {name}: {len(views)} decisions in {time.perf_counter() - begin:.0f} s")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--quick", action="store_true", help="Only what stands beside the peer.")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="Of both, beside the peer.")
    chosen = parser.parse_args()
    rate = matmul_rate()
    print(f"{torch.get_num_threads()} threads, float32 matmul of 2048^3 at {rate:.0f} GFLOP/s.\n")
    print(f"{SAMPLES} samples x {chosen.iterations} iterations x horizon {HORIZON} x {ASSETS} assets, model `small`.\n")
    print("\n".join(beside_the_peer(chosen.peer, rate, chosen.iterations)))
    if not chosen.quick:
        print("\n" + "\n".join(growth()))
        print("\n".join(planners()))
        print("\nA backtest of 1,000 decisions, 20 assets, `small`, decisions one after the other:\n")
        print("\n".join(backtest()))


if __name__ == "__main__":
    main()
