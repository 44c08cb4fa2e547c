"""The td branch as a planner: it reads the utility off the objective and acts at once.

Shapes: B decision dates.
"""

import logging
from dataclasses import dataclass, field

import torch

from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.objective import Objective
from finjepa_model.planning.plan import Cost, Plan
from finjepa_model.planning.space import ActionSpace
from finjepa_model.td.branch import Task, TDBranch

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TDPlanner:
    """TD-JEPA (2510.00739): infers the task of a utility once, then one forward pass a decision.

    Unlike the others it does not search, so it must see what the cost is made of: an `Objective` over the imagination of a
    world model that has the branch.
    """

    _tasks: dict[str, Task] = field(default_factory=dict, init=False)  # by the text of the utility

    @torch.no_grad()
    def plan(
        self, cost: Cost, space: ActionSpace, warm_start: Plan | None = None, generator: torch.Generator | None = None
    ) -> Plan:
        """See `Planner.plan`; only the first step is decided, the path repeats it.

        Raises:
            FinJEPAError: if the checkpoint has no td branch, or the branch cannot express the utility.
        """
        branch = None
        if isinstance(cost, Objective):
            branch = getattr(getattr(cost.world.imagination, "model", None), "td", None)
        if branch is None or not isinstance(cost, Objective):
            raise FinJEPAError(
                "planner td needs a checkpoint with the td branch (one of an earlier version is not read); train one with "
                "`finjepa train --branch jepa,td`"
            )
        action = branch.decide(cost.world.imagination, cost.world, self._task(branch, cost))
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

    def _task(self, branch: TDBranch, cost: Objective) -> Task:
        text = cost.utility.text
        if text not in self._tasks:
            self._tasks[text] = branch.infer(cost.utility)
            if self._tasks[text].advice:
                _log.warning("td: %s", self._tasks[text].advice)
        return self._tasks[text]
