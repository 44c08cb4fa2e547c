"""Random shooting: the control that shows what a search adds to luck.

Shapes: B decision dates, C candidates, H decision steps, N assets.
"""

from dataclasses import dataclass, field

import torch

from finjepa_model.planning.plan import Cost, Plan
from finjepa_model.planning.proposal import Proposal, ProposalConfig
from finjepa_model.planning.record import Record
from finjepa_model.planning.space import ActionSpace


@dataclass(frozen=True, kw_only=True)
class RandomConfig:
    samples: int = 128
    iterations: int = 10
    proposal: ProposalConfig = field(default_factory=ProposalConfig)


class RandomPlanner:
    """As many candidates as CEM and MPPI draw, from the distribution that these start from, and the best one is kept."""

    def __init__(self, config: RandomConfig | None = None):
        self.config = config or RandomConfig()

    @torch.no_grad()
    def plan(
        self, cost: Cost, space: ActionSpace, warm_start: Plan | None = None, generator: torch.Generator | None = None
    ) -> Plan:
        """See `Planner.plan`."""
        proposal = Proposal.start(space, self.config.proposal, warm_start)
        record = Record(cost)
        for _ in range(self.config.iterations):
            cost_BC = record.evaluate(proposal.sample(self.config.samples, generator).actions)
            record.follow(torch.full_like(cost_BC, 1 / self.config.samples))
        return record.plan()
