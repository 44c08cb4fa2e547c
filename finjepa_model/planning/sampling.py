"""The frame that sampling planners share: draw candidates, look at their costs, fit the distribution, repeat.

Shapes: B decision dates, C candidates, E candidates that a fit follows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from finjepa_model.planning.plan import Cost, Plan
from finjepa_model.planning.proposal import Proposal, ProposalConfig
from finjepa_model.planning.record import Record
from finjepa_model.planning.space import ActionSpace


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    samples: int = 128
    iterations: int = 10
    proposal: ProposalConfig = field(default_factory=ProposalConfig)


# From cost_BC to the candidates that a fit follows: their numbers index_BE, None for all, and their weights_BE. No fit at
# all where the whole is None.
Choice = Callable[[Tensor], tuple[Tensor | None, Tensor] | None]


@torch.no_grad()
def search(
    cost: Cost,
    space: ActionSpace,
    warm_start: Plan | None,
    generator: torch.Generator | None,
    config: SamplingConfig,
    choose: Choice,
) -> Plan:
    """What is returned is the best candidate that was seen, not the mean that the distribution ends at."""
    proposal = Proposal.start(space, config.proposal, warm_start)
    record = Record(cost)
    for _ in range(config.iterations):
        samples = proposal.sample(config.samples, generator)
        chosen = choose(record.evaluate(samples.actions))
        if chosen is None:
            record.follow(torch.full_like(samples.actions.hedge_X[..., 0], 1 / config.samples))
            continue
        index_BE, weights_BE = chosen
        record.follow(weights_BE)
        proposal = proposal.fit(samples if index_BE is None else samples.take(index_BE), weights_BE)
    return record.plan()
