"""The zero-shot branch as a planner: it reads the utility off the objective and acts at once.

Shapes: B decision dates, N assets.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from finjepa_model.actions import PortfolioAction
from finjepa_model.compilation import compiling
from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.objectives import Objective
from finjepa_model.planning.plan import Cost, Plan
from finjepa_model.planning.space import ActionSpace

if TYPE_CHECKING:
    from finjepa_model.zero_shot import Task, ZeroShot

    Decide = Callable[..., PortfolioAction]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TDPlannerConfig:
    """How the decision is computed; what it is was trained before."""

    # torch.compile: a fifth of the time (docs/results/zero-shot.md), after half a minute for a new number of dates or assets;
    # needs a C++ compiler
    compile: bool = False


class TDPlanner:
    """TD-JEPA (2510.00739): infers the task of a utility once, then one forward pass a decision.

    Unlike the others it does not search, so it must see what the cost is made of: an `Objective` over the imagination of a
    world model that has the branch.
    """

    def __init__(self, config: TDPlannerConfig | None = None):
        self.config = config or TDPlannerConfig()
        self._tasks: dict[str, Task] = {}  # by the text of the utility
        self._compiled: tuple[ZeroShot, Decide] | None = None

    @torch.no_grad()
    def plan(
        self, cost: Cost, space: ActionSpace, warm_start: Plan | None = None, generator: torch.Generator | None = None
    ) -> Plan:
        """See `Planner.plan`; only the first step is decided, the path repeats it.

        Raises:
            FinJEPAError: if the checkpoint has no td branch, or the branch cannot express the utility.
        """
        action = self.act(cost)
        assert isinstance(cost, Objective)
        path = action.map(lambda x: x.unsqueeze(1).repeat_interleave(space.horizon, dim=1))
        account = cost.account(path)
        cost_B = torch.stack(list(account.terms.values())).sum(0)
        return Plan(
            path=path,
            cost_B=cost_B,
            cost_IB=cost_B.unsqueeze(0),
            weights_IBN=path.weights_XN[:, 0].unsqueeze(0),
            effective_samples_IB=torch.zeros(0, len(cost_B)),
            account=account,
        )

    @torch.no_grad()
    def act(self, cost: Cost) -> PortfolioAction:
        """The decision alone, [B], without the account of where it leads, which takes longer than the decision.

        Raises:
            FinJEPAError: see `plan`; or if it is to be compiled and cannot be.
        """
        branch = None
        if isinstance(cost, Objective):
            branch = getattr(getattr(cost.world.imagination, "model", None), "zero_shot", None)
        if branch is None or not isinstance(cost, Objective):
            raise FinJEPAError(
                "planner td needs a checkpoint with the td branch; train one with `finjepa train --branch jepa,td`"
            )
        task = self.task(branch, cost)
        if not self.config.compile:
            with torch.inference_mode():
                action = branch.decide(cost.world.imagination, cost.world, task)
            return action.map(torch.clone)  # others may go on to differentiate
        if self._compiled is None or self._compiled[0] is not branch:
            self._compiled = branch, torch.compile(branch.decide, fullgraph=True)
        with compiling("planner td with compile=True, but the policy", "set compile=False"):
            return self._compiled[1](cost.world.imagination, cost.world, task)

    def task(self, branch, cost: Objective) -> "Task":
        """The task of the objective's utility, inferred once."""
        text = cost.utility.text
        if text not in self._tasks:
            self._tasks[text] = branch.infer(cost.utility)
            if self._tasks[text].advice:
                _log.warning("td: %s", self._tasks[text].advice)
        return self._tasks[text]
