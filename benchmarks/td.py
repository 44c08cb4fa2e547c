"""The td branch beside planners and soft actor-critic, on markets where the future counts and the optimum is known.

    python benchmarks/td.py run FOLDER --seeds 0-1 [--markets "slow regime"] [--variants plain,rolled] [--planners qp,cem]
    python benchmarks/td.py sac FOLDER --seeds 0 [--steps 20000]        # needs stable-baselines3 and gymnasium
    python benchmarks/td.py times
    python benchmarks/td.py table FOLDER

Policies see the true moments of the next steps, so that what is compared is the rule of decision. A seed draws a market's
numbers and starts the training. Every result is one line of FOLDER/results.jsonl: the share of the optimal multi-step gain over
never trading (`benchmarks.multi_step`); `table` prints means over utilities and seeds, with intervals
over seeds.

Shapes: Y portfolios, each in a market of its own, N = 2 assets, R rows of results.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from student import half_width
from torch import Tensor

from benchmarks.multi_step import (
    BETA,
    DISCOUNT,
    MULTI_STEP_MARKETS,
    MultiStepMarket,
    MultiStepProblem,
    TrueImagination,
    actions_of,
)
from finjepa_model import FinJEPA
from finjepa_model.actions import PortfolioAction
from finjepa_model.config import FinJEPAConfig, TDConfig, preset
from finjepa_model.errors import FinJEPAError
from finjepa_model.planners import make_planner
from finjepa_model.planning.objective import Objective, PlanningWorld
from finjepa_model.planning.plan import ActionSpace
from finjepa_model.planning.utility import parse_utility
from finjepa_model.portfolio import PortfolioSimulator, PortfolioState
from finjepa_model.td.branch import TDBranch
from finjepa_model.td.networks import PolicyState
from finjepa_model.td.rollouts import PORTFOLIOS, ROLLED, Rollout, policy_loss, random_utility
from finjepa_model.td.training import backward, draw_transition, parameter_groups
from finjepa_model.training.trainer import falling
from tests.model.markets import random_observation

STEPS, REUSE = 300, 10
COMMON = {"hidden": 64, "members": 1, "kept_states": 1024, "target_rate": 0.05, "discount": 0.97}
VARIANTS: dict[str, dict[str, float]] = {
    "plain": {"rollout": 0.0, "actor": 1.0},  # the paper's actor
    "both": {"actor": 1.0},
    "rolled": {},
}
# Further from what the task features can express, for the curve of regret against their fit
CURVE = (
    "log_growth - 1.5*variance",
    "log_growth - 0.05*above(volatility, 0.02)",
    "log_growth - 30*variance*net",
    "log_growth - 0.02*above(turnover, 0.2)",
    "log_growth - 0.02*abs(net - 0.5)",
    "log_growth*abs(net - 0.5)",
)


@dataclass(frozen=True)
class TruePath:
    """Decisions of portfolios on a market's chain, in the place of a `MarketPath` of a panel."""

    market: MultiStepMarket
    imaginations: tuple[TrueImagination, ...]
    noise_KY: Tensor  # of the returns

    @classmethod
    def draw(cls, market: MultiStepMarket, number: int, seed: int) -> "TruePath":
        random, rows, chain = np.random.default_rng([seed, number]), PORTFOLIOS, [np.zeros(0, int)]
        chain[0] = random.integers(0, len(market.mean_Z), rows)
        for _ in range(ROLLED):
            ahead_YZ = market.chance_ZZ[chain[-1]].cumsum(1)
            chain.append((random.random(rows)[:, None] > ahead_YZ[:, :-1]).sum(1))
        seen = tuple(market.imagined(z_Y, 1).to(torch.float32) for z_Y in chain)
        return cls(market, seen, torch.tensor(random.standard_normal((ROLLED, rows)), dtype=torch.float32))

    def take(self, some: torch.Tensor) -> "TruePath":
        return replace(
            self, imaginations=tuple(x.take(some) for x in self.imaginations), noise_KY=self.noise_KY[:, some]
        )

    @property
    def simulator(self) -> PortfolioSimulator:
        return PortfolioSimulator(self.market.rules)

    def start(self) -> PortfolioState:
        return self.simulator.start(tuple(self.imaginations[0].present_BN.shape), dtype=torch.float32)

    def state(self, decision: int, portfolio: PortfolioState, outcome_YO: Tensor | None = None) -> PolicyState:
        imagined = self.imaginations[decision]
        return PolicyState.of(imagined, self.market.world(imagined, portfolio), outcome_YO)  # type: ignore[arg-type]

    def hold(self, decision: int, s: PolicyState, action: PortfolioAction) -> PortfolioState:
        """Positions are kept as shares of wealth and the second asset is cash, as in the account of the optimum."""
        action = actions_of(action.positions(self.market.rules.allow_short)[:, 0], action.hedge_X)
        world, zero_Y = s.world, torch.zeros_like(s.world.state.wealth_X)
        begun = replace(world.state, decided_wealth_X=world.state.wealth_X, step_cost_X=zero_Y, step_turnover_X=zero_Y)
        frictions = world.frictions.map(lambda x: x[:, 0])
        traded, _ = world.simulator.trade(begun, action, world.moments.beta_BN, None, frictions)
        share_YN = action.positions(self.market.rules.allow_short)
        hedge_Y = -BETA * traded.hedged_X * share_YN[:, 0].clamp(min=0)
        imagined = self.imaginations[decision]
        deviation_Y = imagined.covariance_BHMM[:, 0, 0, 0].sqrt()
        return_Y = imagined.mean_BHN[:, 0, 0] + deviation_Y * self.noise_KY[decision]
        wealth_Y = traded.wealth_X * (1 + (share_YN[:, 0] + hedge_Y / BETA) * return_Y).clamp(min=0.05)
        return replace(
            traded,
            positions_XN=share_YN * wealth_Y[:, None],
            hedge_X=hedge_Y * wealth_Y,
            cash_X=wealth_Y * (1 - share_YN.sum(-1) - hedge_Y),
            peak_X=torch.maximum(traded.peak_X, wealth_Y),
        )


def new_branch(market: MultiStepMarket, variant: str) -> TDBranch:
    model = replace(preset("tiny").model, dim=8, heads=2, stride=1)
    td = TDConfig(enabled=True, **(COMMON | VARIANTS[variant]))  # type: ignore[arg-type]
    return TDBranch(FinJEPAConfig(model=model, portfolio=market.rules, td=td))


def keep_states(branch: TDBranch, market: MultiStepMarket, seed: int) -> None:
    """What tasks are inferred on."""
    drawn = [draw_transition(TruePath.draw(market, 10_000 + k, seed), branch) for k in range(4)]  # type: ignore[arg-type]
    with torch.no_grad():
        branch.kept_RZ.copy_(torch.cat([branch.algorithm.task_encoder(one.after) for one in drawn]))
    branch.kept_RQ.copy_(torch.cat([one.quantities_YQ for one in drawn]))


def train(market: MultiStepMarket, variant: str, seed: int, steps: int) -> TDBranch:
    """As `finjepa_model.td.training.TDTrainer`, on the market's own chain; the last policy is kept."""
    torch.manual_seed(seed)
    branch = new_branch(market, variant)
    algorithm, config = branch.algorithm, branch.algorithm.config
    drawn = [draw_transition(TruePath.draw(market, 20_000 + k, seed), branch) for k in range(4)]  # type: ignore[arg-type]
    branch.calibrate(torch.cat([one.after.outcome_YO for one in drawn]))
    branch.standardise([random_utility(market.rules) for _ in range(512)], drawn[0].after, drawn[0].quantities)
    optimizer = torch.optim.Adam(parameter_groups(branch), lr=config.learning_rate)
    for step in range(steps):
        if step % REUSE == 0:
            path = TruePath.draw(market, step // REUSE, seed)
        one = draw_transition(path, branch)  # type: ignore[arg-type]
        loss = algorithm.losses(one.before, one.action, one.after)["loss"]
        if config.rollout:
            loss = loss + config.rollout * policy_loss(Rollout.draw(path, algorithm.discount), branch, one)
        backward(loss, optimizer, falling(config.learning_rate, step, steps), 10.0)
        optimizer.step()
        algorithm.update_targets()
    keep_states(branch, market, seed)
    return branch


def decide(branch: TDBranch, problem: MultiStepProblem) -> PortfolioAction:
    world = problem.world()
    return branch.decide(world.imagination, world, branch.infer(problem.utility))  # type: ignore[arg-type]


def planned(world: PlanningWorld, problem: MultiStepProblem, planner: str, horizon: int) -> PortfolioAction:
    space = ActionSpace.from_config(problem.market.rules, world.moments.present_BN, horizon)
    settings = {"starts": 2, "iterations": 16} if planner == "gradient" else {}
    generator = torch.Generator().manual_seed(0)
    return make_planner(planner, **settings).plan(Objective(world, problem.utility), space, None, generator).action


def run(arguments: argparse.Namespace) -> None:
    for name in arguments.markets:
        for seed in arguments.seeds:
            market = MULTI_STEP_MARKETS[name](seed)
            problems = [MultiStepProblem(market, utility) for utility in market.utilities]

            def record(policy: str, problem: MultiStepProblem, share: float, **more: Any) -> None:
                write(arguments.folder, market.name, seed, policy, problem.utility.text, share, **more)  # noqa: B023

            for problem in problems:
                record("myopic", problem, problem.share(problem.myopic))
                for planner in arguments.planners:
                    for horizon in (1, ROLLED) if planner == "qp" else (ROLLED,):
                        with contextlib.suppress(FinJEPAError):  # the qp, of a utility that it cannot solve
                            action = planned(problem.world(horizon), problem, planner, horizon)
                            record(f"{planner} {horizon}", problem, problem.share(problem.value_of(action)))
            for variant in arguments.variants:
                started = time.perf_counter()
                before, after = (train(market, variant, seed, steps) for steps in (0, arguments.steps))
                seconds = time.perf_counter() - started
                for problem in problems:
                    for when, branch in (("untrained", before), ("trained", after)):
                        share = problem.share(problem.value_of(decide(branch, problem)))
                        fit = branch.infer(problem.utility).fit
                        record(f"td {variant} {when}", problem, share, fit=fit, seconds=seconds)
                if name == "slow regime" and variant == arguments.variants[-1]:
                    for text in CURVE:
                        problem = MultiStepProblem(market, text)
                        share = problem.share(problem.value_of(decide(after, problem)))
                        record("curve", problem, share, fit=after.infer(problem.utility).fit)


def write(folder: Path, market: str, seed: int, policy: str, utility: str, share: float, **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    row = {"market": market, "seed": seed, "policy": policy, "utility": utility, "share": share, **more}
    with (folder / "results.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def sac(arguments: argparse.Namespace) -> None:
    """Soft actor-critic of stable-baselines3, for the first utility of each market: it sees the state and names the position."""
    import gymnasium
    from stable_baselines3 import SAC

    class Environment(gymnasium.Env):
        """The account of the optimum; positions are rounded to its grid."""

        def __init__(self, problem: MultiStepProblem, seed: int):
            self.problem, self.random, market = problem, np.random.default_rng(seed), problem.market
            self.observation_space = gymnasium.spaces.Box(-5, 5, (market.signals_ZF.shape[1] + 3,), np.float32)
            self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
            self.seen_SX = observed(problem)
            wide = [torch.tensor(np.tile(x, (len(problem.z_S), 1))) for x in (problem.grid_X, 0 * problem.grid_X)]
            hedges = (0.0, 1.0) if market.rules.allow_hedge else (0.0,)
            self.reward_HSX = [problem.rewards(actions_of(wide[0], wide[1] + hedge)) for hedge in hedges]

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
            self.state, self.age = int(self.random.integers(len(self.problem.z_S))), 0
            return self.seen_SX[self.state], {}

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            position, hedge = acted(self.problem, action)
            place = int(np.abs(self.problem.grid_X - position).argmin())
            reward = float(self.reward_HSX[int(hedge)][self.state, place])
            here = self.problem.z_S[[self.state]], self.problem.drawdown_S[[self.state]]
            row = self.problem.moves(*here, np.array([hedge]), self.problem.grid_X[[place]])
            self.state = int(self.random.choice(row.indices, p=row.data / row.data.sum()))
            self.age += 1
            return self.seen_SX[self.state], 100 * reward, False, self.age >= 100, {}

    for name in arguments.markets:
        for seed in arguments.seeds:
            problem = MultiStepProblem(market := MULTI_STEP_MARKETS[name](seed), market.utilities[0])
            started = time.perf_counter()
            learner = SAC(
                "MlpPolicy", Environment(problem, seed), gamma=DISCOUNT, seed=seed, learning_starts=500, ent_coef=0.01
            )
            learner.learn(arguments.steps)
            action, _ = learner.predict(observed(problem), deterministic=True)
            position_S, hedge_S = np.stack([acted(problem, one) for one in action]).T
            share = problem.share(problem.value_of(actions_of(torch.tensor(position_S), torch.tensor(hedge_S))))
            write(
                arguments.folder, name, seed, "sac", problem.utility.text, share, seconds=time.perf_counter() - started
            )


def observed(problem: MultiStepProblem) -> np.ndarray:
    """What soft actor-critic sees of every state: signals, position, hedge, drawdown."""
    own = np.column_stack([problem.held_S, problem.hedged_S, 10 * problem.drawdown_S])
    return np.column_stack([problem.market.signals_ZF[problem.z_S], own]).astype(np.float32)


def acted(problem: MultiStepProblem, action: np.ndarray) -> tuple[float, float]:
    """Position and hedge of an action in [-1, 1]^2."""
    rules = problem.market.rules
    position = float(action[0]) if rules.allow_short else (float(action[0]) + 1) / 2
    return position, float(action[1] > 0 and rules.allow_hedge)


def times(arguments: argparse.Namespace) -> None:
    """Milliseconds of a decision of many assets, and of the task of a new utility, on a branch and a market at random."""

    utility = parse_utility("log_growth - 2.5*variance")
    for assets, batches in ((20, (1, 64)), (100, (1, 8)), (500, (1,))):
        for rows in batches:
            config = replace(preset("tiny"), td=TDConfig(enabled=True, hidden=64))
            torch.manual_seed(0)
            model = FinJEPA(config).eval()
            imagined = model.imagine(random_observation(config, dates=rows, assets=assets), ROLLED)
            simulator = PortfolioSimulator(config.portfolio)
            world = PlanningWorld.of(imagined, simulator, simulator.start((rows, assets), dtype=torch.float32), 10)
            branch = model.td
            assert branch is not None
            branch.kept_RZ.normal_()
            branch.kept_RQ.normal_()
            task = branch.infer(utility)
            space = ActionSpace.from_config(config.portfolio, imagined.present_BN, ROLLED)
            objective, cem = Objective(world, utility), make_planner("cem")
            forward = _median(lambda: branch.decide(imagined, world, task), 7)  # noqa: B023
            search = _median(lambda: cem.plan(objective, space, None, torch.Generator().manual_seed(0)), 1)  # noqa: B023
            infer = _median(lambda: branch.infer(utility), 7)  # noqa: B023
            print(f"| {assets} | {rows} | {forward:.1f} | {search:.0f} | {search / forward:.0f} | {infer:.1f} |")


def _median(function: Any, repeats: int) -> float:
    spans = []
    for _ in range(repeats + (repeats > 1)):
        started = time.perf_counter()
        function()
        spans.append(1e3 * (time.perf_counter() - started))
    return float(np.median(spans[-repeats:]))


def table(arguments: argparse.Namespace) -> None:
    """Shares by market and policy, mean over utilities and seeds; the targets on all of them; the curve."""
    rows = [json.loads(line) for line in (arguments.folder / "results.jsonl").read_text().splitlines()]
    chosen = [row for row in rows if row["policy"] != "curve"]
    markets = [name for name in MULTI_STEP_MARKETS if any(row["market"] == name for row in chosen)]
    policies = sorted({row["policy"] for row in chosen})
    print("| policy | " + " | ".join(markets) + " |\n|---|" + "--:|" * len(markets))
    for policy in policies:
        cells = [by_seed(chosen, policy, market) for market in markets]
        print(f"| {policy} | " + " | ".join(f"{np.mean(c):.2f}" if len(c) else "–" for c in cells) + " |")
    trained = [policy for policy in policies if policy.endswith(" trained")]
    for policy in trained:
        untrained = policy.replace(" trained", " untrained")
        for market in markets:
            mine, start = (by_seed(chosen, p, market) for p in (policy, untrained))
            best = np.max(
                [
                    by_seed(chosen, p, market)
                    for p in policies
                    if p.split()[0] in ("qp", "cem", "mppi", "gradient")
                    and p.split()[1] != "1"
                    and len(by_seed(chosen, p, market)) == len(mine)
                ],
                axis=0,
            )
            myopic = by_seed(chosen, "myopic", market)
            print(
                f"{policy}, {market}: over untrained {_interval(mine - start)}, over .8 of the best planner's gain "
                f"{_interval(mine - 0.8 * best)} ({mine.mean() / best.mean():.2f} of it), over myopic {_interval(mine - myopic)}"
            )
    for row in sorted((row for row in rows if row["policy"] == "curve"), key=lambda row: -row["fit"]):
        print(f"| `{row['utility']}` | {row['seed']} | {row['fit']:.2f} | {1 - row['share']:.2f} |")


def by_seed(rows: Sequence[dict], policy: str, market: str) -> np.ndarray:
    """Mean over utilities for each seed, in order."""
    some = [row for row in rows if row["policy"] == policy and row["market"] == market]
    seeds = sorted({row["seed"] for row in some})
    return np.array([np.mean([row["share"] for row in some if row["seed"] == seed]) for seed in seeds])


def _interval(values: np.ndarray) -> str:
    return f"{values.mean():.2f}" + (f" ± {half_width(values):.2f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "sac", "times", "table"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path("td"))
    parser.add_argument("--seeds", type=_seeds, default=range(1), help="such as 0-4")
    parser.add_argument("--markets", type=_names, default=list(MULTI_STEP_MARKETS))
    parser.add_argument("--variants", type=_names, default=["rolled"])
    parser.add_argument("--planners", type=_names, default=["qp", "cem", "mppi"])
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    {"run": run, "sac": sac, "times": times, "table": table}[arguments.command](arguments)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


if __name__ == "__main__":
    main()
