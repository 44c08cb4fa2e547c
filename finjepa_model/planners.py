"""Every planner by name: `planning` has those that search and solve; the one that has learned what to do is here, above `td`."""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch

from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.objective import Objective
from finjepa_model.planning.plan import ActionSpace, Cost, Plan, Planner
from finjepa_model.planning.qp import QPPlanner
from finjepa_model.planning.search import CEMPlanner, GradientPlanner, MPPIPlanner, RandomPlanner
from finjepa_model.td.branch import Task, TDBranch
from finjepa_model.world_model import Imagination

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TDPlanner:
    """TD-JEPA (2510.00739): infers the task of a utility once, then one forward pass a decision. It does not search, so it must
    see what the cost is made of: an `Objective` over the imagination of a world model that has the branch.
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
        imagination = cost.world.imagination if isinstance(cost, Objective) else None
        branch = imagination.model.td if isinstance(imagination, Imagination) else None
        if branch is None or not isinstance(cost, Objective) or not isinstance(imagination, Imagination):
            raise FinJEPAError(
                "planner td needs a checkpoint with the td branch (one of an earlier version is not read); train one with "
                "`finjepa train --branch jepa,td`"
            )
        action = branch.decide(imagination, cost.world, self._task(branch, cost))
        path = action.map(lambda x: x.unsqueeze(1).repeat_interleave(space.horizon, dim=1))
        account = cost.account(path)
        cost_B = account.cost_B
        no_samples = torch.zeros(0, len(cost_B))
        return Plan(path, cost_B, cost_B.unsqueeze(0), path.weights_XN[:, 0].unsqueeze(0), no_samples, account)

    def _task(self, branch: TDBranch, cost: Objective) -> Task:
        text = cost.utility.text
        if text not in self._tasks:
            self._tasks[text] = branch.infer(cost.utility)
            if self._tasks[text].advice:
                _log.warning("td: %s", self._tasks[text].advice)
        return self._tasks[text]


# Each is a dataclass whose fields are its settings; a new one needs a line here and nothing else.
PLANNERS: dict[str, type] = {
    "cem": CEMPlanner,
    "mppi": MPPIPlanner,
    "gradient": GradientPlanner,
    "qp": QPPlanner,
    "random": RandomPlanner,
    "td": TDPlanner,
}


def make_planner(name: str, **settings: Any) -> Planner:
    """A planner by name, with its defaults changed by keyword.

    Raises:
        FinJEPAError: for an unknown planner.
    """
    if name not in PLANNERS:
        raise FinJEPAError(f"unknown planner {name!r}; choose one of {', '.join(sorted(PLANNERS))}")
    return PLANNERS[name](**settings)
