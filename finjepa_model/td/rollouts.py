"""Market paths of a panel, and roll-outs along them: what a policy earns by random utilities, which it learns from.

The way is the simulator's and the reward the utility itself, so the value of the next steps has an exact slope in the
policy's positions and needs no critic: deep hedging (Buehler, Gonon, Teichmann and Wood 2019), with a region of no trade as by
Imaki, Imajo, Ito, Minami and Nakagawa (2021). A hedge, which is on or off, is a choice between two roll-outs of the same path:
classification weighted by cost (Lazaric, Ghavamzadeh and Munos 2010).

Shapes: Y portfolios, U utilities, Z task features, H steps, Q quantities, O outcomes, C copies.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.data.batches import PAST, BatchSource, MarketBatch
from finjepa_model.data.panel import Panel
from finjepa_model.planning.objective import PlanningWorld
from finjepa_model.planning.utility import Utility, parse_utility
from finjepa_model.portfolio import PortfolioSimulator, PortfolioState
from finjepa_model.td.branch import TDBranch, infer_tasks, reward_of
from finjepa_model.td.networks import EXPECTED, QUANTITY_NAMES, PolicyState, PortfolioActor
from finjepa_model.training.behaviour import random_action, random_drawdown
from finjepa_model.world_model import Imagination, WorldModel

ROLLED, PORTFOLIOS = 8, 256  # decision steps; of a roll-out
_UTILITIES = 16  # of a roll-out
_WAITS = 0.15  # share of portfolios that have bought nothing before the first state
# Prices of a utility in log_growth: lowest, highest, and how often it has them. Log-uniform.
_PRICES = {
    "variance": (0.3, 30.0, 0.9),
    "turnover": (3e-4, 1e-2, 0.3),
    "above(drawdown, {limit:.3f})": (0.05, 0.6, 0.25),
    "hedge": (3e-4, 3e-3, 0.2),
    "cash": (3e-4, 0.1, 0.2),
}
_DEEPEST = (0.03, 0.2)  # limits of drawdowns


@dataclass(frozen=True)
class Transition:
    """What is learned from; `quantities_YQ` are `QUANTITY_NAMES` of the step between the two states."""

    before: PolicyState
    action: PortfolioAction
    after: PolicyState
    quantities_YQ: Tensor

    @property
    def quantities(self) -> dict[str, Tensor]:
        """value_Y by name."""
        return dict(zip(QUANTITY_NAMES, self.quantities_YQ.unbind(-1), strict=True))


@dataclass(frozen=True)
class MarketPath:
    """A decision that leads to the first state and `ROLLED` decisions that are learned from, of Y portfolios, each in a
    market of its own: row `rows_Y` of the batch."""

    model: WorldModel
    simulator: PortfolioSimulator
    imaginations: tuple[Imagination, ...]
    batch: MarketBatch
    rows_Y: Tensor

    def start(self) -> PortfolioState:
        """All in cash."""
        present_YN = self.imaginations[0].present_BN
        return self.simulator.start(tuple(present_YN.shape), dtype=torch.float32, device=present_YN.device)

    def state(self, decision: int, portfolio: PortfolioState, outcome_YO: Tensor | None = None) -> PolicyState:
        """Where portfolios stand at a decision."""
        imagination = self.imaginations[decision]
        world = PlanningWorld.of(imagination, self.simulator, portfolio, self.model.config.model.stride)
        return PolicyState.of(imagination, world, outcome_YO)

    def take(self, some: slice | Tensor) -> "MarketPath":
        """Some of the portfolios, by their numbers; one may be taken more than once."""
        return replace(self, imaginations=tuple(one.take(some) for one in self.imaginations), rows_Y=self.rows_Y[some])

    def hold(self, decision: int, s: PolicyState, action: PortfolioAction) -> PortfolioState:
        """What an action has led to at the next decision."""
        held = (self.batch.returns_BKTN, self.batch.market_returns_BKT, self.batch.tradable_BKTN)
        returns_YTN, market_YT, tradable_YTN = (x[self.rows_Y, decision + 1] for x in held)
        beta_YN = s.world.moments.beta_BN
        return self.simulator.step(s.world.state, action, returns_YTN, market_YT, beta_YN, tradable_YTN)[0]


class MarketPaths:
    """Those of a block of sessions; which are drawn is a function of the seed and a number alone.

    Args:
        block: half-open range of sessions.
        dates, portfolios: of a batch.
    """

    def __init__(self, model: WorldModel, panel: Panel, block: tuple[int, int], dates: int, portfolios: int):
        self.model = model
        self.device = next(model.parameters()).device
        settings = {"training.batch_size": dates, "model.context_steps": 1, "loss.rollout_steps": ROLLED}
        self._source = BatchSource(panel, model.config.override(settings), block, past=PAST)
        self._simulator = PortfolioSimulator(model.config.portfolio)
        self._rows_Y = torch.arange(dates, device=self.device).repeat_interleave(portfolios)
        self._drawn: tuple[int, MarketPath] | None = None  # the last one, since several steps use it

    def draw(self, number: int) -> MarketPath:
        """The path of that number; the portfolios of a date follow each other."""
        if self._drawn is None or self._drawn[0] != number:
            batch, stride = self._source.draw(number).to(self.device), self.model.config.model.stride
            seen = tuple(
                self.model.imagine(batch.observation.step(k, stride), 1).take(self._rows_Y) for k in range(ROLLED + 1)
            )
            self._drawn = number, MarketPath(self.model, self._simulator, seen, batch, self._rows_Y)
        return self._drawn[1]


def random_utility(rules: PortfolioConfig) -> Utility:
    """Growth, less a few risks and costs at random prices."""
    terms = ["log_growth"]
    for name, (low, high, share) in _PRICES.items():
        wanted, position, depth = torch.rand(3).tolist()
        if wanted < share and (name != "hedge" or rules.allow_hedge):
            limit = _DEEPEST[0] + depth * (_DEEPEST[1] - _DEEPEST[0])
            price = math.exp(math.log(low) + position * math.log(high / low))
            terms.append(f"{price:.6f}*{name.format(limit=limit)}")
    return parse_utility(" - ".join(terms))


def lead(path: MarketPath) -> tuple[PolicyState, PortfolioAction]:
    """The first decision of a path: portfolios that are somewhat below their peak do something random, and some nothing."""
    s = path.state(0, random_drawdown(path.start()))
    action = random_action(s.present_YN, None, path.simulator.config)
    waits_Y1 = torch.rand_like(action.signals_XN[:, :1]) < _WAITS
    return s, replace(action, signals_XN=torch.where(waits_Y1, 0.0, action.signals_XN))


@dataclass(frozen=True)
class Rollout:
    """A path, the portfolios at its second decision, and the utilities of random ones: number y has utility y modulo U."""

    path: MarketPath
    portfolio: PortfolioState
    utilities: Sequence[Utility]
    discount: float  # of a decision step

    @classmethod
    def draw(cls, path: MarketPath, discount: float) -> "Rollout":
        """What is random in it comes from torch's global generator; no parameter of a branch has a part in it."""
        utilities = [random_utility(path.simulator.config) for _ in range(_UTILITIES)]
        with torch.no_grad():
            return cls(path, path.hold(0, *lead(path)), utilities, discount)

    def tasks(self, branch: TDBranch, transition: Transition) -> tuple[Tensor, Tensor]:
        """task_YZ, and unit_Y, the reward of a unit of the features along it; inferred on the transition."""
        with torch.no_grad():
            features_RZ = branch.algorithm.targets["task_encoder"](transition.after)
        tasks = infer_tasks(self.utilities, features_RZ, transition.quantities)
        which_Y = torch.arange(len(self.portfolio.wealth_X)) % len(tasks)
        direction_UZ = torch.stack([task.direction_Z for task in tasks])
        return direction_UZ[which_Y], direction_UZ.new_tensor([task.unit for task in tasks])[which_Y]

    def value(self, policy: Callable[[PolicyState], PortfolioAction], both_hedges: bool = False) -> Tensor:
        """The discounted utility of `ROLLED` steps, with its slope in the positions: value_CY of C = 1 roll-out, or of C = 2, the
        first hedge of one on and that of the other off."""
        copies, steps = 1 + both_hedges, []
        rows_X = torch.arange(len(self.portfolio.wealth_X)).repeat(copies)
        path, portfolio = self.path.take(rows_X), self.portfolio.map(lambda x: x[rows_X])
        for decision in range(1, ROLLED + 1):
            s = path.state(decision, portfolio)
            action = policy(s)
            hedge_X = action.hedge_X.detach()
            if both_hedges and decision == 1:
                hedge_X = (torch.arange(len(hedge_X), device=hedge_X.device) < len(hedge_X) // 2).to(hedge_X)
            action = replace(action, hedge_X=hedge_X)
            steps.append(s.quantities(action, EXPECTED))
            if decision < ROLLED:
                portfolio = path.hold(decision, s, action)
        quantities_CYHQ = torch.stack(steps, dim=1).unflatten(0, (copies, -1))
        discount_H = self.discount ** torch.arange(ROLLED).to(quantities_CYHQ)
        value_CY = torch.zeros_like(quantities_CYHQ[..., 0, 0])
        for i, utility in enumerate(self.utilities):
            values: dict[str, Tensor] = dict(
                zip(EXPECTED, quantities_CYHQ[:, i :: len(self.utilities)].unbind(-1), strict=True)
            )
            value_CY[:, i :: len(self.utilities)] = reward_of(utility, values) @ discount_H
        return value_CY


def policy_loss(rollout: Rollout, branch: TDBranch, transition: Transition) -> Tensor:
    """Minus the value of the policy in units of its tasks, and the cross entropy of its first hedges by what they gain."""
    actor = cast(PortfolioActor, branch.algorithm.actor)
    task_YZ, unit_Y = rollout.tasks(branch, transition)
    hedges = actor.rules.allow_hedge
    value_CY = rollout.value(lambda s: actor.act(s, task_YZ.repeat(1 + hedges, 1)), hedges) / unit_Y
    if not hedges:
        return -value_CY.mean()
    gain_Y = (value_CY[0] - value_CY[1]).detach()
    _, logit_Y = actor.wants(rollout.path.state(1, rollout.portfolio), task_YZ)
    entropy_Y = F.binary_cross_entropy_with_logits(logit_Y, (gain_Y > 0).to(gain_Y), reduction="none")
    chance_Y = torch.sigmoid(logit_Y).detach()
    return (gain_Y.abs() * entropy_Y - chance_Y * value_CY[0] - (1 - chance_Y) * value_CY[1]).mean()


@torch.no_grad()
def gain(rollout: Rollout, branch: TDBranch, transition: Transition) -> float:
    """What the policy earns beyond never trading, in units of its tasks; a mean over portfolios."""
    actor = cast(PortfolioActor, branch.algorithm.actor)
    task_YZ, unit_Y = rollout.tasks(branch, transition)
    earned_CY = rollout.value(lambda s: actor.act(s, task_YZ))
    held_CY = rollout.value(lambda s: actor.action(s, s.held_YN / actor.rules.max_gross, s.world.state.hedged_X))
    return float(((earned_CY - held_CY) / unit_Y).mean())
