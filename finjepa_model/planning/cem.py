"""The cross-entropy method over mixed actions.

Shapes: B decision dates, C candidates, E elites, H decision steps, N assets.
"""

from dataclasses import dataclass, field

import torch

from finjepa_model.planning.plan import Cost, Plan
from finjepa_model.planning.proposal import Proposal, ProposalConfig
from finjepa_model.planning.record import Record
from finjepa_model.planning.space import ActionSpace


@dataclass(frozen=True, kw_only=True)
class CEMConfig:
    samples: int = 128
    iterations: int = 10
    elites: int = 16
    proposal: ProposalConfig = field(default_factory=ProposalConfig)


class CEMPlanner:
    """Draw candidates, keep the elites, fit the distribution to them, repeat (Rubinstein 1999; JEPA-WMs, section 4).

    Differs from the CEM of the JEPA code bases where they lose: sample 0 is the mean, the standard deviation is the
    population's (one elite gives 0, not NaN), plans are warm-started, and what is returned is the best candidate seen.
    """

    def __init__(self, config: CEMConfig | None = None):
        self.config = config or CEMConfig()

    @torch.no_grad()
    def plan(
        self, cost: Cost, space: ActionSpace, warm_start: Plan | None = None, generator: torch.Generator | None = None
    ) -> Plan:
        """See `Planner.plan`."""
        config = self.config
        proposal = Proposal.start(space, config.proposal, warm_start)
        record = Record(cost)
        for _ in range(config.iterations):
            samples = proposal.sample(config.samples, generator)
            elite = record.evaluate(samples.actions).topk(min(config.elites, config.samples), largest=False)
            finite_BE = elite.values.isfinite().to(elite.values.dtype)
            weights_BE = finite_BE / finite_BE.sum(-1, keepdim=True).clamp(min=1)
            record.follow(weights_BE)
            proposal = proposal.fit(samples.take(elite.indices), weights_BE)
        return record.plan()
