"""Transitions without rewards: portfolios on market paths of a block, by the exact mechanics, with sampled actions.

The market of a batch is encoded once for many portfolios, since it does not depend on them.

Shapes: B decision dates, C portfolios on each, Y = B x C, O outcomes, Q quantities.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.data.batches import PAST, BatchSource
from finjepa_model.data.panel import Panel
from finjepa_model.planning.objective import PlanningWorld
from finjepa_model.portfolio import PortfolioSimulator, PortfolioState
from finjepa_model.td.branch import TDBranch
from finjepa_model.td.state import CONSEQUENCES, QUANTITY_NAMES, REALISED, PolicyState, realised
from finjepa_model.training.behaviour import random_action, random_drawdown
from finjepa_model.world_model import FinJEPA, Imagination

DECISIONS = 3  # of a path: one that leads to the first state, one that is learned from, and the state after it
_ACTED = 0.5  # share of actions that are the actor's own, so that its values are learned where they are used
_WAITS = 0.15  # share of portfolios that have bought nothing before the first state


@dataclass(frozen=True)
class Transition:
    """What is learned from; `quantities_YQ` are `QUANTITY_NAMES` of the step between the two states."""

    before: PolicyState
    action: PortfolioAction
    after: PolicyState
    quantities_YQ: Tensor


@dataclass(frozen=True)
class MarketPath:
    """`DECISIONS` decisions of Y portfolios, each in a market of its own."""

    model: FinJEPA
    simulator: PortfolioSimulator
    imaginations: tuple[Imagination, ...]
    returns_YKTN: Tensor
    market_returns_YKT: Tensor
    tradable_YKTN: Tensor

    def start(self) -> PortfolioState:
        """All in cash."""
        present_YN = self.imaginations[0].present_BN
        return self.simulator.start(tuple(present_YN.shape), dtype=torch.float32, device=present_YN.device)

    def state(self, decision: int, portfolio: PortfolioState, outcome_YO: Tensor | None = None) -> PolicyState:
        """Where portfolios stand at a decision."""
        imagination = self.imaginations[decision]
        world = PlanningWorld.of(imagination, self.simulator, portfolio, self.model.config.model.stride)
        return PolicyState.of(imagination, world, outcome_YO)

    @torch.no_grad()
    def hold(self, decision: int, s: PolicyState, action: PortfolioAction) -> PortfolioState:
        """What an action has led to at the next decision."""
        k = decision - (DECISIONS - 1)
        moved, _ = self.simulator.step(
            s.world.state,
            action,
            self.returns_YKTN[:, k],
            self.market_returns_YKT[:, k],
            s.world.moments.beta_BN,
            self.tradable_YKTN[:, k],
        )
        return moved


class MarketPaths:
    """Those of a block of sessions; which are drawn is a function of the seed and a number alone.

    Args:
        block: half-open range of sessions.
        dates, portfolios: of a batch.
    """

    def __init__(self, model: FinJEPA, panel: Panel, block: tuple[int, int], dates: int, portfolios: int):
        self.model = model
        self.device = next(model.parameters()).device
        training = replace(model.config.training, batch_size=dates)
        self._source = BatchSource(panel, replace(model.config, training=training), block, past=PAST)
        self._simulator = PortfolioSimulator(model.config.portfolio)
        self._rows_Y = torch.arange(dates, device=self.device).repeat_interleave(portfolios)
        self._drawn: tuple[int, MarketPath] | None = None  # the last one, since several steps use it

    def draw(self, number: int) -> MarketPath:
        """The path of that number; the portfolios of a date follow each other."""
        if self._drawn is None or self._drawn[0] != number:
            batch, rows_Y = self._source.draw(number).to(self.device), self._rows_Y
            steps = [batch.observation.step(k - DECISIONS, self.model.config.model.stride) for k in range(DECISIONS)]
            seen = [self.model.imagine(step, 1) for step in steps]
            held = (batch.returns_BKTN[rows_Y], batch.market_returns_BKT[rows_Y], batch.tradable_BKTN[rows_Y])
            path = MarketPath(self.model, self._simulator, tuple(one.take(rows_Y) for one in seen), *held)
            self._drawn = number, path
        return self._drawn[1]


def draw_transition(path: MarketPath, branch: TDBranch) -> Transition:
    """A transition of every portfolio of a path; what is random in it comes from torch's global generator."""
    leading = path.state(0, random_drawdown(path.start()))
    led_by = _behaviour(branch, leading, None)
    # the others are in cash, as every portfolio at its start
    waits_Y1 = torch.rand_like(led_by.signals_XN[:, :1]) < _WAITS
    led_by = replace(led_by, signals_XN=torch.where(waits_Y1, 0.0, led_by.signals_XN))
    portfolio, quantities_YQ = _hold(path, 0, leading, led_by)
    before = path.state(1, portfolio, _outcome(quantities_YQ))
    action = _behaviour(branch, before, led_by)
    portfolio, quantities_YQ = _hold(path, 1, before, action)
    return Transition(before, action, path.state(2, portfolio, _outcome(quantities_YQ)), quantities_YQ)


@torch.no_grad()
def _behaviour(branch: TDBranch, s: PolicyState, last: PortfolioAction | None) -> PortfolioAction:
    """Some actions are random, some the actor's on random tasks."""
    algorithm = branch.algorithm
    acted = algorithm.actor(s, algorithm.encode(s), algorithm.draw_tasks(algorithm.task_encoder(s)))
    other = random_action(s.present_YN, last, s.world.simulator.config)
    is_acted_Y = torch.rand(len(s.present_YN), device=s.present_YN.device) < _ACTED
    return acted.where(is_acted_Y, other)


@torch.no_grad()
def _hold(path: MarketPath, decision: int, s: PolicyState, action: PortfolioAction) -> tuple[PortfolioState, Tensor]:
    """Where an action has led, and the quantities_YQ of the step."""
    expected_YQ = s.quantities(action, QUANTITY_NAMES[: -len(REALISED)])
    moved = path.hold(decision, s, action)
    return moved, torch.cat([expected_YQ, realised(s.world.state, moved)], dim=-1)


def _outcome(quantities_YQ: Tensor) -> Tensor:
    """The `OUTCOMES` among the quantities."""
    return torch.cat([quantities_YQ[:, : len(CONSEQUENCES)], quantities_YQ[:, -len(REALISED) :]], dim=-1)
