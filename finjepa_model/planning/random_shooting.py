"""Random shooting: the control that shows what a search adds to luck."""

from dataclasses import dataclass

import torch

from finjepa_model.planning.plan import Cost, Plan
from finjepa_model.planning.sampling import SamplingConfig, search
from finjepa_model.planning.space import ActionSpace


@dataclass(frozen=True, kw_only=True)
class RandomConfig(SamplingConfig):
    """As many candidates as CEM and MPPI draw."""


class RandomPlanner:
    """Candidates from the distribution that CEM and MPPI start from, and the best one is kept."""

    def __init__(self, config: RandomConfig | None = None):
        self.config = config or RandomConfig()

    def plan(
        self, cost: Cost, space: ActionSpace, warm_start: Plan | None = None, generator: torch.Generator | None = None
    ) -> Plan:
        """See `Planner.plan`."""
        return search(cost, space, warm_start, generator, self.config, lambda cost_BC: None)
