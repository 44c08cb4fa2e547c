"""How well the policy of a zero-shot branch serves tasks that it may be given, on sessions that it has not learned from.

Shapes: B decision dates, T tasks on each, Y = B x T, Q consequences, Z task features.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.td_jepa import to_sphere
from finjepa_model.training.behaviour import random_action
from finjepa_model.training.panel import Panel
from finjepa_model.training.splits import split_dates
from finjepa_model.training.stretches import DECISIONS, Stretches
from finjepa_model.world_model import FinJEPA
from finjepa_model.zero_shot.networks import TaskEncoder
from finjepa_model.zero_shot.situation import Situation

_DATES, _TASKS = 32, 64
_SEED = 2011  # of the tasks and of the random portfolios
_RANDOM = 16  # portfolios a date and task


class PolicyScore:
    """Of the policy as it is now, by the world model's own account and after exact costs; more is better.

    Tasks are sums of a few outcomes, as the branch learns for; every one of them is followed from cash over the decisions of
    the same stretches of the validation block. A task's score is what its policy gains over 1/N a decision, in standard
    deviations over random portfolios; the policy's is the mean over tasks. There is no chance in it.
    """

    @torch.no_grad()
    def __init__(self, model: FinJEPA, panel: Panel):
        """After the branch has been calibrated: the tasks are drawn in its units."""
        assert model.zero_shot is not None
        self.algorithm, self.rules = model.zero_shot.algorithm, model.config.portfolio
        block = split_dates(len(panel.dates), model.config).validation
        self._stretches = Stretches(model, panel, block, _DATES, _TASKS)
        torch.manual_seed(_SEED)
        encoder = self.algorithm.task_encoder
        assert isinstance(encoder, TaskEncoder)
        self._task_YZ = to_sphere(encoder.draw_sums(_TASKS)).repeat(_DATES, 1)
        self._price_YQ = encoder.outcomes.prices(self._task_YZ)
        stretch = self._stretches.draw(0)
        start = stretch.situation(0, stretch.start())
        drawn = [self._value(start, random_action(start.present_YN, None, self.rules)) for _ in range(_RANDOM)]
        self._spread_T = torch.stack(drawn).std(0).view(_DATES, _TASKS).mean(0).clamp(min=1e-9)
        self._equal_T = self._follow(_equal_weights)

    @torch.no_grad()
    def __call__(self) -> float:
        def policy(s: Situation) -> PortfolioAction:
            return self.algorithm.act(s, self._task_YZ)

        return float(((self._follow(policy) - self._equal_T) / self._spread_T).mean())

    def _follow(self, policy: Callable[[Situation], PortfolioAction]) -> Tensor:
        """Mean value_T of a decision."""
        stretch = self._stretches.draw(0)
        state, values = stretch.start(), []
        for decision in range(DECISIONS):
            s = stretch.situation(decision, state)
            action = policy(s)
            values.append(self._value(s, action))
            if decision + 1 < DECISIONS:
                state = stretch.hold(decision, s, action)
        return torch.stack(values).view(DECISIONS, _DATES, _TASKS).mean((0, 1))

    def _value(self, s: Situation, action: PortfolioAction) -> Tensor:
        """What the step that comes is worth to the tasks: value_Y."""
        return (s.quantities(action) * self._price_YQ).sum(-1)


def _equal_weights(s: Situation) -> PortfolioAction:
    signals_YN = s.present_YN.to(s.own_YNV.dtype)
    return PortfolioAction(
        signals_YN / signals_YN.sum(-1, keepdim=True), signals_YN, torch.zeros_like(signals_YN[:, 0])
    )
