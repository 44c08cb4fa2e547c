"""The cross-entropy method over mixed actions.

Shapes: B decision dates, C candidates, E elites.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from finjepa_model.planning.plan import Cost, Plan
from finjepa_model.planning.sampling import SamplingConfig, search
from finjepa_model.planning.space import ActionSpace


@dataclass(frozen=True, kw_only=True)
class CEMConfig(SamplingConfig):
    elites: int = 16


class CEMPlanner:
    """Draw candidates, keep the elites, fit the distribution to them, repeat (Rubinstein 1999; JEPA-WMs, section 4).

    Differs from the CEM of the JEPA code bases where they lose: sample 0 is the mean, the standard deviation is the
    population's (one elite gives 0, not NaN), plans are warm-started, and what is returned is the best candidate seen.
    """

    def __init__(self, config: CEMConfig | None = None):
        self.config = config or CEMConfig()

    def plan(
        self, cost: Cost, space: ActionSpace, warm_start: Plan | None = None, generator: torch.Generator | None = None
    ) -> Plan:
        """See `Planner.plan`."""
        return search(cost, space, warm_start, generator, self.config, self.elites)

    def elites(self, cost_BC: Tensor) -> tuple[Tensor, Tensor]:
        """The cheapest candidates, index_BE, and equal weights_BE for those of finite cost."""
        elite = cost_BC.topk(min(self.config.elites, cost_BC.shape[1]), largest=False)
        finite_BE = elite.values.isfinite().to(cost_BC.dtype)
        return elite.indices, finite_BE / finite_BE.sum(-1, keepdim=True).clamp(min=1)
