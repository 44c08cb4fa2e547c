"""Planning: seconds per decision beside planners of other world models that drive the same dynamics, growth, and a backtest.

    python benchmarks/planning.py [--peers FOLDER] [--quick]

The folder holds what is there of: the site-packages stable-worldmodel, gymnasium, loguru and einops, and the repositories
`eb_jepa` and `jepa-wms` (they are no dependency of this project). Their planners get the same model, and a cost that rolls
market and portfolio for every candidate, as a planner does that knows nothing of exogenous markets. Prints Markdown.
"""

import argparse
import contextlib
import importlib
import io
import re
import sys
import tempfile
import time
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

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
WIDTH = 2 * ASSETS + 1  # of an action as other planners see it: weights, signals, a hedge


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


def module_of(file: Path) -> types.ModuleType:
    """A file of a repository as a module; what it imports and is not installed is replaced by nothing at all."""
    text = file.read_text()
    for name in re.findall(r"^(?:from|import) ([\w.]+)", text, re.MULTILINE):
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = MagicMock()
    module = types.ModuleType(file.stem)
    exec(compile(text, str(file), "exec"), module.__dict__)
    return module


def stable_worldmodel_cem(folder: Path, model: "PeerModel", iterations: int) -> Callable[[], object]:
    """Without the environments and data that its package imports."""
    package = types.ModuleType("stable_worldmodel")
    package.__path__ = [str(folder / "stable_worldmodel")]
    sys.modules["stable_worldmodel"] = package
    from gymnasium.spaces import Box
    from stable_worldmodel.solver.cem import CEMSolver

    solver = CEMSolver(model, num_samples=SAMPLES, n_steps=iterations, topk=ELITES)
    plan_config = types.SimpleNamespace(horizon=HORIZON, action_block=1)
    solver.configure(action_space=Box(-1, 1, (1, WIDTH)), n_envs=1, config=plan_config)
    return lambda: solver.solve({"date": torch.zeros(1, 1)})


def eb_jepa(folder: Path, name: str, model: "PeerModel", iterations: int) -> Callable[[], object]:
    planner = getattr(module_of(folder / "eb_jepa" / "eb_jepa" / "planning.py"), name)(
        lambda _, actions_CAH: model.get_cost({}, actions_CAH.mT[None])[0],
        n_iters=iterations,
        num_samples=SAMPLES,
        plan_length=HORIZON,
        action_dim=WIDTH,
        num_elites=ELITES,
        decode_each_iteration=False,
    )
    planner.set_objective(lambda cost_C: cost_C)
    return lambda: planner.plan(None, eval_mode=True)


def jepa_wms_cem(folder: Path, model: "PeerModel", iterations: int) -> Callable[[], object]:
    """On a CPU, where its planner asks for a GPU; it rolls the mean out once more at each iteration."""
    file = folder / "jepa-wms" / "evals" / "simu_env_planning" / "planning" / "planning" / "planner.py"
    planner = module_of(file).CEMPlanner(
        lambda _, act_suffix: model.get_cost({}, act_suffix.transpose(0, 1)[None])[0],
        iterations=iterations,
        num_samples=SAMPLES,
        horizon=HORIZON,
        action_dim=WIDTH,
        num_elites=ELITES,
    )
    planner.device = torch.device("cpu")
    planner.set_objective(lambda cost_C, _: cost_C)
    return lambda: planner.plan(None)


PEERS = {
    "stable-worldmodel CEM": ("stable_worldmodel", stable_worldmodel_cem),
    "eb_jepa CEM": ("eb_jepa", lambda *case: eb_jepa(case[0], "CEMPlanner", *case[1:])),
    "eb_jepa MPPI": ("eb_jepa", lambda *case: eb_jepa(case[0], "MPPIPlanner", *case[1:])),
    "jepa-wms CEM": ("jepa-wms", jepa_wms_cem),
}


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


def beside_peers(folder: Path | None, rate: float, iterations: int) -> list[str]:
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
    case = BlockKey(1)
    model, least = PeerModel(case), float("inf")
    for name, (where, make) in PEERS.items():
        if folder is None or not (folder / where).is_dir():
            lines.append(f"| {name} | not there | | | |")
            continue
        sys.path.append(str(folder))
        solve = make(folder, model, iterations)
        with contextlib.redirect_stdout(io.StringIO()):
            with FlopCounterMode(display=False) as counted:
                solve()
            theirs = seconds(solve, 1)
        work, least = counted.get_total_flops() / 1e9, min(least, theirs)
        lines.append(
            f"| {name}, full roll-out | {theirs:.3f} | {theirs / ours[64]:.1f} | {work:.2f} | {work / theirs / rate:.2f} |"
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
        f"Per decision ours takes at least {least / ours[64]:.1f} times less with 64 dates in a batch, {least / ours[1]:.1f} "
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
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--quick", action="store_true", help="Only what stands beside others.")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="Of all, beside others.")
    chosen = parser.parse_args()
    rate = matmul_rate()
    print(f"{torch.get_num_threads()} threads, float32 matmul of 2048^3 at {rate:.0f} GFLOP/s.\n")
    print(f"{SAMPLES} samples x {chosen.iterations} iterations x horizon {HORIZON} x {ASSETS} assets, model `small`.\n")
    print("\n".join(beside_peers(chosen.peers, rate, chosen.iterations)))
    if not chosen.quick:
        print("\n" + "\n".join(growth()))
        print("\n".join(planners()))
        print("\nA backtest of 1,000 decisions, 20 assets, `small`, decisions one after the other:\n")
        print("\n".join(backtest()))


if __name__ == "__main__":
    main()
