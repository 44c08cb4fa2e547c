"""The td branch beside planners with the same utility, on synthetic markets whose truth is known.

    python benchmarks/td.py FOLDER --variants drift,risk --seeds 0-2
    python benchmarks/td.py FOLDER --variants drift --seeds 0 --sac 5000     # needs stable-baselines3

For each market: a panel, a world model, its td branch, and then for each utility one walk a policy over the first year of the
test block. A decision is scored by the utility's value under the true moments at its close (`of oracle`) and under the world
model's own (`of mppi`). Every market is one line of FOLDER/results.jsonl as soon as it is known, and is not run again.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from student import half_width

from finjepa_model import FinJEPA
from finjepa_model.actions import PortfolioAction
from finjepa_model.config import FinJEPAConfig, preset
from finjepa_model.data.splits import history_needed, split_dates
from finjepa_model.market_view import MarketView, Universe
from finjepa_model.planners import TDPlanner, make_planner
from finjepa_model.planning.imagination import one_factor_covariance
from finjepa_model.planning.objective import Objective, PlanningWorld, quantities
from finjepa_model.planning.plan import ActionSpace, project_to_simplex
from finjepa_model.planning.utility import Utility, parse_utility
from finjepa_model.portfolio import PortfolioSimulator, PortfolioState
from finjepa_model.td.training import TDTrainer
from finjepa_model.training.trainer import Trainer
from finjepa_model.world_model import Imagination
from finjepa_pipeline.backtest.engine import BacktestSetup
from finjepa_pipeline.backtest.known_truth import KnownTruthMarket
from finjepa_pipeline.prices.synthetic.oracle import share_of_gain
from finjepa_pipeline.training.checkpoints import for_panel

N_ASSETS, SESSIONS = 8, 252
UTILITIES = (
    "log_growth - 2.5*variance",
    "log_growth - 0.5*variance",
    "log_growth - 10*variance",
    "log_growth - 2.5*variance - 0.002*turnover",
    "log_growth - 0.05*volatility",
    "log_growth - 2.5*variance - 0.005*concentration",
    "log_growth - 2.5*variance - 0.002*beta",
    "log_growth - 0.02*cvar",
    "0.01*net - 10*variance",
    "log_growth - above(drawdown, 0.05)",
)
Policy = Callable[[PlanningWorld, Utility], PortfolioAction]


@dataclass(frozen=True)
class TrueMoments:
    """The truth at a close in the words of an imagination: moments of a decision step under the one-factor model."""

    mean_BHN: torch.Tensor
    covariance_BHMM: torch.Tensor
    beta_BN: torch.Tensor
    present_BN: torch.Tensor

    @classmethod
    def of(cls, mean_N: np.ndarray, covariance_NN: np.ndarray, sessions: int, horizon: int) -> "TrueMoments":
        """One session's moments, as if they stayed."""
        market_N = np.full(len(mean_N), 1 / len(mean_N))
        variance = market_N @ covariance_NN @ market_N

        def steps(value: np.ndarray | float) -> torch.Tensor:
            tensor = torch.as_tensor(value, dtype=torch.float32)
            return tensor.expand(1, horizon, *tensor.shape)

        beta_1N = torch.as_tensor(covariance_NN @ market_N / variance, dtype=torch.float32)[None]
        volatility_1HN, market_volatility_1H = (
            steps(np.sqrt(sessions * x)) for x in (np.diag(covariance_NN), float(variance))
        )
        covariance_1HMM = one_factor_covariance(volatility_1HN, market_volatility_1H, beta_1N)
        return cls(steps(sessions * mean_N), covariance_1HMM, beta_1N, torch.ones(1, len(mean_N), dtype=torch.bool))


@dataclass(frozen=True)
class Decision:
    """One close: as imagined, as it truly is, and what the sessions after it bring."""

    imagined: Imagination
    truth: TrueMoments
    returns_1TN: torch.Tensor
    market_1T: torch.Tensor


class Arena:
    """A block of sessions with a fixed universe: the assets with the longest history that live through it."""

    def __init__(self, ground: KnownTruthMarket, model: FinJEPA, block: tuple[int, int]):
        self.config = config = model.config
        self.simulator = PortfolioSimulator(config.portfolio)
        panel, stride, history = ground.panel, config.model.stride, history_needed(config)
        first, end = block[0], min(block[0] + SESSIONS, block[1])
        known_N = panel.eligible_assets(first, history)
        living_N = known_N[(panel.first + panel.lengths)[known_N] >= end]
        assets_N = np.sort(living_N[np.argsort(panel.first[living_N], kind="stable")][:N_ASSETS])
        setup = BacktestSetup.over(
            panel, (first, end), config.portfolio, stride=stride, n_assets=N_ASSETS, window=history
        )
        setup = replace(setup, universes=(Universe(first, assets_N),))
        truth = ground.truth_of(setup, np.array(setup.decisions))
        self.decisions = []
        for k, session in enumerate(setup.decisions[:-1]):
            view = MarketView(panel, session, assets_N, history)
            returns_1NT, _ = panel.returns_after(np.array([session]), assets_N[None], stride)
            self.decisions.append(
                Decision(
                    model.imagine(view.observation(config), 2),
                    TrueMoments.of(truth.mean_TR[k], truth.covariance_TRR[k], stride, 2),
                    torch.from_numpy(returns_1NT.transpose(0, 2, 1).copy()).float(),
                    torch.from_numpy(np.array(panel.market_returns[session + 1 : session + 1 + stride]))[None].float(),
                )
            )

    def simulate(self, policy: Policy, utility: Utility, knows_truth: bool = False) -> dict[str, float]:
        """Mean value of the decisions by the truth and by the world model's account, and milliseconds a decision."""
        state = self.simulator.start((1, N_ASSETS), dtype=torch.float32)
        truly, imagined, seconds = [], [], []
        for decision in self.decisions:
            true_world, world = (self.world(m, state) for m in (decision.truth, decision.imagined))
            started = time.perf_counter()
            action = policy(true_world if knows_truth else world, utility)
            seconds.append(time.perf_counter() - started)
            truly.append(value(true_world, action, utility))
            imagined.append(value(world, action, utility))
            state, _ = self.simulator.step(
                state,
                action,
                decision.returns_1TN,
                decision.market_1T,
                decision.imagined.beta_BN,
                torch.ones_like(decision.returns_1TN, dtype=torch.bool),
            )
        return {
            "truth": float(np.mean(truly)),
            "imagined": float(np.mean(imagined)),
            "milliseconds": 1e3 * float(np.median(seconds)),
        }

    def world(self, moments: TrueMoments | Imagination, state: PortfolioState) -> PlanningWorld:
        return PlanningWorld.of(moments, self.simulator, state, self.config.model.stride)  # type: ignore[arg-type]


def value(world: PlanningWorld, action: PortfolioAction, utility: Utility) -> float:
    """The utility of a decision's step, in a world."""
    rollout = world.roll(action.map(lambda x: x[:, None, None]))
    return float(utility(quantities(world, rollout, utility.names))[0, 0, 0])


def searched(name: str, config: FinJEPAConfig, **settings: int) -> Policy:
    planner = make_planner(name, **settings)

    def policy(world: PlanningWorld, utility: Utility) -> PortfolioAction:
        space = ActionSpace.from_config(config.portfolio, world.moments.present_BN, 2)
        return planner.plan(Objective(world, utility), space, None, torch.Generator().manual_seed(0)).action

    return policy


def at_once() -> Policy:
    """The td branch: the decision alone."""
    planner = TDPlanner()
    return lambda world, utility: planner.act(Objective(world, utility))


def equal_weights(world: PlanningWorld, utility: Utility) -> PortfolioAction:
    weights_1N = torch.full((1, N_ASSETS), 1 / N_ASSETS)
    return PortfolioAction(weights_1N, torch.ones_like(weights_1N), torch.zeros(1))


def train(folder: Path, ground: KnownTruthMarket, seed: int, overrides: dict[str, str]) -> tuple[FinJEPA, dict]:
    """World model and branch, or those that were trained before."""
    changes = {"training.seed": str(seed), "td.enabled": "true", **overrides}
    config = for_panel(preset("tiny").override(changes), ground.panel)
    saved = folder / "trained"
    if not (saved / "td.json").is_file():
        trainer = Trainer(config, ground.panel, folder / "run")
        trainer.train()
        metrics = TDTrainer(trainer.model, ground.panel, folder / "run").train()
        trainer.model.save_pretrained(saved)
        (saved / "td.json").write_text(json.dumps(metrics))
    return FinJEPA.from_pretrained(saved), json.loads((saved / "td.json").read_text())


def untrained(model: FinJEPA, ground: KnownTruthMarket, folder: Path) -> FinJEPA:
    """The same world model with a branch that has not learned anything yet."""
    config = model.config.override({"td.steps": "0"})
    torch.manual_seed(config.training.seed)
    other = FinJEPA(config)
    known = {name: value for name, value in model.state_dict().items() if not name.startswith("td.")}
    other.load_state_dict(known, strict=False)
    TDTrainer(other, ground.panel, folder / "untrained").train()
    return other.eval()


def run_market(arguments: argparse.Namespace, variant: str, seed: int) -> dict:
    folder = arguments.folder / f"{variant}-{seed}"
    ground = KnownTruthMarket.of(folder / "home", variant, seed)
    model, metrics = train(folder, ground, seed, dict(a.split("=", 1) for a in arguments.set))
    splits = split_dates(len(ground.panel.dates), model.config)
    arena = Arena(ground, model, getattr(splits, arguments.block))
    policies = {"td": at_once()} | {name: searched(name, model.config) for name in ("cem", "mppi")}
    before, before_policy = Arena(ground, untrained(model, ground, folder), getattr(splits, arguments.block)), at_once()
    oracle = searched("cem", model.config, samples=256, iterations=12)
    rows = []
    for text in UTILITIES:
        utility = parse_utility(text)
        walks = {"equal_weight": arena.walk(equal_weights, utility)}
        walks["oracle"] = arena.walk(oracle, utility, knows_truth=True)
        walks |= {name: arena.walk(policy, utility) for name, policy in policies.items()}
        walks["untrained"] = before.walk(before_policy, utility)
        if arguments.sac and text == UTILITIES[0]:
            learned = sac_policy(
                Arena(ground, model, (splits.train[1] - SESSIONS, splits.train[1])), utility, arguments.sac
            )
            walks["sac"] = arena.walk(learned, utility)
        rows.append({"utility": text, "fit": model.td.infer(utility).fit, "walks": walks})
    return {
        "variant": variant,
        "seed": seed,
        "decisions": len(arena.decisions),
        "seconds": metrics["seconds"],
        "eigenvalues": metrics["eigenvalues"],
        "policy": metrics["policy"],
        "steps": metrics["steps"],
        "effective_rank": metrics["effective_rank"],
        "rows": rows,
    }


def observe(world: PlanningWorld) -> np.ndarray:
    """What a policy without the branch may see: forecasts, risk and holdings of each asset."""
    moments, mean_1N = world.moments, world.moments.mean_BHN[:, 0]
    volatility_1N = moments.covariance_BHMM[:, 0].diagonal(dim1=-2, dim2=-1)[:, :-1].sqrt()
    parts = [50 * mean_1N, 10 * volatility_1N, moments.beta_BN, world.state.holdings_XN]
    return torch.cat(parts, -1)[0].numpy().astype(np.float32)


def to_action(raw: np.ndarray) -> PortfolioAction:
    """A box to an action: 8 weights by projection, 8 signals and a hedge by their sign."""
    raw_1V = torch.from_numpy(np.asarray(raw, np.float32))[None]
    present_1N = torch.ones(1, N_ASSETS, dtype=torch.bool)
    return PortfolioAction(
        project_to_simplex(raw_1V[:, :N_ASSETS], present_1N),
        (raw_1V[:, N_ASSETS : 2 * N_ASSETS] > -0.5).float(),
        (raw_1V[:, -1] > 0.5).float(),
    )


def sac_policy(arena: Arena, utility: Utility, steps: int) -> Policy:
    """Soft actor-critic of stable-baselines3 for this one utility, on the last year of the training block."""
    import gymnasium
    from stable_baselines3 import SAC

    class Market(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4 * N_ASSETS,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (2 * N_ASSETS + 1,), np.float32)

        def reset(self, *, seed: int | None = None, options: dict | None = None):
            super().reset(seed=seed)
            self.k = 0
            self.state = arena.simulator.start((1, N_ASSETS), dtype=torch.float32)
            return observe(arena.world(arena.decisions[0].imagined, self.state)), {}

        def step(self, raw: np.ndarray):
            decision, action = arena.decisions[self.k], to_action(raw)
            reward = 100 * value(arena.world(decision.imagined, self.state), action, utility)
            tradable_1TN = torch.ones_like(decision.returns_1TN, dtype=torch.bool)
            self.state, _ = arena.simulator.step(
                self.state, action, decision.returns_1TN, decision.market_1T, decision.imagined.beta_BN, tradable_1TN
            )
            self.k += 1
            ended = self.k == len(arena.decisions)
            following = arena.decisions[min(self.k, len(arena.decisions) - 1)]
            return observe(arena.world(following.imagined, self.state)), reward, False, ended, {}

    agent = SAC("MlpPolicy", Market(), gamma=0.8, learning_rate=1e-3, batch_size=128, learning_starts=200, seed=0)
    agent.learn(steps)
    return lambda world, utility: to_action(agent.predict(observe(world), deterministic=True)[0])


def table(markets: list[dict], variant: str) -> Iterator[str]:
    """Markdown: a line a utility, shares over seeds with their range, and the times."""
    of = [market for market in markets if market["variant"] == variant]
    names = ("td", "cem", "mppi")
    yield f"{variant}: {len(of)} seeds, {of[0]['decisions']} decisions each\n"
    heads = "".join(f" {name} of oracle |" for name in names)
    yield f"| utility | fit | td of mppi, by the model's account | the same, before training |{heads}"
    yield "|---|--:|" + "--:|" * (len(names) + 2)
    for i, text in enumerate(UTILITIES):
        rows = [market["rows"][i] for market in of]
        walks = [row["walks"] for row in rows]
        cells = [_share(walks, name, "mppi", "imagined") for name in ("td", "untrained")]
        cells += [_share(walks, name, "oracle", "truth") for name in names]
        yield f"| `{text}` | {np.mean([row['fit'] for row in rows]):.2f} | " + " | ".join(cells) + " |"
    times = {n: np.median([r["walks"][n]["milliseconds"] for m in of for r in m["rows"]]) for n in names}
    yield "\nMilliseconds a decision (median): " + ", ".join(f"{name} {ms:.1f}" for name, ms in times.items())
    yield "\nMean over the utilities, by seed (95 % over seeds by Student's t):\n"
    for account, best in (("imagined", "mppi"), ("truth", "oracle")):
        for name in ("td", "untrained", "cem", "mppi"):
            if name != best:
                yield f"- {name} of {best}: {_by_seed(of, name, best, account)}"
    pairs = [share for market in of for share in _shares(market, "td", "mppi", "imagined")]
    yield f"- of {len(pairs)} pairs of a market and a utility {sum(share >= 0.8 for share in pairs)} reach 0.8 of mppi"
    changes = [_walk(row, "td", "imagined") - _walk(row, "untrained", "imagined") for m in of for row in m["rows"]]
    yield f"- training is better in {sum(x > 0 for x in changes)} of {len(changes)} pairs, the same in {changes.count(0.0)}"
    for market in of:
        score = market["policy"]
        yield f"- seed {market['seed']}: {market['steps']} steps, the best policy is that of step {score['step']}"
        for row in market["rows"]:
            if "sac" in row["walks"]:
                walks = [row["walks"]]
                shares = ", ".join(f"{n} {_share(walks, n, 'mppi', 'imagined')}" for n in ("sac", "td"))
                yield f"  `{row['utility']}`, of mppi by the model's account: {shares}"


def _walk(row: dict, name: str, account: str) -> float:
    return row["walks"][name][account]


def _shares(market: dict, name: str, of: str, account: str) -> list[float]:
    """Gain over 1/N as a share of another policy's, for each utility for which that one gains anything."""
    shares = [
        share_of_gain(*(_walk(row, who, account) for who in (name, "equal_weight", of))) for row in market["rows"]
    ]
    return [share for share in shares if not np.isnan(share)]


def _by_seed(markets: list[dict], name: str, of: str, account: str) -> str:
    means = np.array([np.mean(_shares(market, name, of, account)) for market in markets])
    listed = ", ".join(f"{mean:.2f}" for mean in means)
    if len(means) < 2:
        return listed
    return f"{listed}; {means.mean():.2f} +- {half_width(means):.2f}"


def _share(walks: list[dict], name: str, of: str, account: str) -> str:
    """Gain over 1/N as a share of another policy's: mean over seeds (lowest to highest), where that one gains anything."""
    shares = np.array([share_of_gain(*(walk[who][account] for who in (name, "equal_weight", of))) for walk in walks])
    known = shares[~np.isnan(shares)]
    return f"{known.mean():.2f} ({known.min():.2f} to {known.max():.2f})" if len(known) else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variants", default="drift,risk")
    parser.add_argument("--seeds", default="0-2", help="one number, or first-last")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--block", default="test", choices=("validation", "test"))
    parser.add_argument("--sac", type=int, default=0, help="steps of soft actor-critic for the first utility")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    first, _, last = arguments.seeds.partition("-")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = arguments.folder / f"results-{arguments.block}.jsonl"

    def done() -> list[dict]:
        return [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []

    for seed in range(int(first), int(last or first) + 1):
        for variant in arguments.variants.split(","):
            if not any((market["variant"], market["seed"]) == (variant, seed) for market in done()):
                market = run_market(arguments, variant, seed)
                with results.open("a") as file:
                    file.write(json.dumps(market) + "\n")
    for variant in arguments.variants.split(","):
        print("\n".join(table(done(), variant)))


if __name__ == "__main__":
    main()
