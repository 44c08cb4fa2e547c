"""Transitions without rewards: real or synthetic market paths, portfolios on them by the exact mechanics, sampled actions.

Nothing is stored.

Shapes: B decision dates, C portfolios on each, Y = B x C, N assets, O outcomes, Q quantities, Z task features.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.portfolio import PortfolioState
from finjepa_model.training.behaviour import random_action, random_drawdown
from finjepa_model.training.panel import Panel
from finjepa_model.training.splits import split_dates
from finjepa_model.training.stretches import Stretch, Stretches
from finjepa_model.world_model import FinJEPA
from finjepa_model.zero_shot.situation import CONSEQUENCES, QUANTITY_NAMES, REALISED, Situation, realised

_ACTED = 0.5  # share of actions that are the actor's own, so that its values are learned where they are used
_WAITS = 0.15  # share of portfolios that have bought nothing before the first state


@dataclass(frozen=True)
class Transition:
    before: Situation
    action: PortfolioAction
    after: Situation
    quantities_YQ: Tensor  # `QUANTITY_NAMES` of the step between them
    task_YZ: Tensor  # that the actor had in mind where it acted


class Experience:
    """Draws the transitions of a step of training from the training block of a panel."""

    def __init__(self, model: FinJEPA, panel: Panel):
        assert model.zero_shot is not None
        self.branch, self.config = model.zero_shot, model.config
        block = split_dates(len(panel.dates), self.config).train
        self.stretches = Stretches(model, panel, block, self.config.td.dates, self.config.td.portfolios)

    def draw(self, step: int) -> Transition:
        """The transitions of a step; what is random in them comes from torch's global generator."""
        stretch = self.stretches.draw(step // self.config.td.reuse)
        leading = stretch.situation(0, random_drawdown(stretch.start()))
        task_YZ = self._tasks(leading)
        led_by = self._mixture(leading, task_YZ, None)
        # the others stand in cash, where every portfolio begins
        waits_Y1 = torch.rand(len(task_YZ), 1, device=task_YZ.device) < _WAITS
        led_by = replace(led_by, signals_XN=torch.where(waits_Y1, 0.0, led_by.signals_XN))
        state, quantities_YQ = _hold(stretch, 0, leading, led_by)
        before = stretch.situation(1, state, _outcome(quantities_YQ))
        action = self._mixture(before, task_YZ, led_by)
        state, quantities_YQ = _hold(stretch, 1, before, action)
        return Transition(before, action, stretch.situation(2, state, _outcome(quantities_YQ)), quantities_YQ, task_YZ)

    @torch.no_grad()
    def _tasks(self, s: Situation) -> Tensor:
        return self.branch.algorithm.draw_tasks(self.branch.algorithm.task_encoder(s))

    @torch.no_grad()
    def _mixture(self, s: Situation, task_YZ: Tensor, last: PortfolioAction | None) -> PortfolioAction:
        """Some actions of the behaviour policy, some of the actor on these tasks."""
        algorithm = self.branch.algorithm
        acted = algorithm.actor(s, algorithm.encode(s), task_YZ)
        other = random_action(s.present_YN, last, self.config.portfolio)
        is_acted_Y = torch.rand(len(task_YZ), device=task_YZ.device) < _ACTED
        return PortfolioAction(
            torch.where(is_acted_Y.unsqueeze(-1), acted.weights_XN, other.weights_XN),
            torch.where(is_acted_Y.unsqueeze(-1), acted.signals_XN, other.signals_XN),
            torch.where(is_acted_Y, acted.hedge_X, other.hedge_X),
        )


@torch.no_grad()
def _hold(stretch: Stretch, decision: int, s: Situation, action: PortfolioAction) -> tuple[PortfolioState, Tensor]:
    """Where an action has led, and the quantities_YQ of the step."""
    expected_YQ = s.quantities(action, QUANTITY_NAMES[: -len(REALISED)])
    moved = stretch.hold(decision, s, action)
    return moved, torch.cat([expected_YQ, realised(s.world.state, moved)], dim=-1)


def _outcome(quantities_YQ: Tensor) -> Tensor:
    """The `OUTCOMES` among the quantities."""
    return torch.cat([quantities_YQ[:, : len(CONSEQUENCES)], quantities_YQ[:, -len(REALISED) :]], dim=-1)
