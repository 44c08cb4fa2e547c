"""Model predictive path integral control over mixed actions.

Shapes: B decision dates, C candidates, H decision steps, N assets, K temperatures.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from finjepa_model.planning.plan import Cost, Plan
from finjepa_model.planning.record import effective_samples
from finjepa_model.planning.sampling import SamplingConfig, search
from finjepa_model.planning.space import ActionSpace


@dataclass(frozen=True, kw_only=True)
class MPPIConfig(SamplingConfig):
    temperature: float = 0.2  # of costs in units of their median distance to the lowest; lower is greedier
    effective_band: tuple[float, float] = (0.05, 0.3)  # of effective over drawn samples; moves the temperature if left


def mppi_weights(cost_BC: Tensor, temperature_B1: Tensor | float) -> Tensor:
    """exp(-(C - Cmin) / temperature), normalised to sum 1 on each date; 0 for a cost of infinity: weights_BC.

    The temperature divides (Williams et al. 2017); the JEPA code bases multiply by a number of the same name.
    """
    lowest_B1 = cost_BC.amin(-1, keepdim=True)
    gap_BC = torch.where(cost_BC.isfinite(), cost_BC - lowest_B1, torch.inf)
    weights_BC = torch.exp(-gap_BC / temperature_B1)
    return weights_BC / weights_BC.sum(-1, keepdim=True).clamp(min=torch.finfo(weights_BC.dtype).tiny)


def normalise_costs(cost_BC: Tensor) -> Tensor:
    """Costs above the lowest one, in units of the median of that over the finite candidates of a date.

    A temperature then has no unit. The median rather than the standard deviation, because late in a search most candidates
    are nearly equal and a few, with an asset flipped, are far off. Infinite costs stay so.
    """
    gap_BC = torch.where(cost_BC.isfinite(), cost_BC - cost_BC.amin(-1, keepdim=True), torch.nan)
    median_B1 = gap_BC.nanmedian(-1, keepdim=True).values.nan_to_num(1.0)
    return (gap_BC / median_B1.clamp(min=torch.finfo(gap_BC.dtype).tiny)).nan_to_num(torch.inf)


class MPPIPlanner:
    """Weigh all candidates by exp(-cost / temperature) and fit the distribution to them, noise included.

    With a fixed noise the search stays as coarse as it started; here the noise is refitted. The temperature starts from
    the configured one and moves, on each date by itself, as far as the effective sample size needs to stay in its band.
    """

    def __init__(self, config: MPPIConfig | None = None):
        self.config = config or MPPIConfig()

    def plan(
        self, cost: Cost, space: ActionSpace, warm_start: Plan | None = None, generator: torch.Generator | None = None
    ) -> Plan:
        """See `Planner.plan`."""
        return search(cost, space, warm_start, generator, self.config, lambda cost_BC: (None, self.weigh(cost_BC)))

    def weigh(self, cost_BC: Tensor) -> Tensor:
        """Weights at the temperature nearest to the configured one that keeps the effective sample size in its band.

        The effective sample size grows with the temperature, so a grid of factors 1.25 apart finds it in one sweep.
        """
        config = self.config
        cost_BC = normalise_costs(cost_BC)
        steps_K = torch.arange(-24, 25, dtype=cost_BC.dtype, device=cost_BC.device)
        temperatures_K = config.temperature * 1.25**steps_K
        ratio_BK = effective_samples(mppi_weights(cost_BC.unsqueeze(1), temperatures_K[:, None])) / cost_BC.shape[1]
        low, high = config.effective_band
        outside_BK = (low - ratio_BK).clamp(min=0) + (ratio_BK - high).clamp(min=0)
        chosen_B = (outside_BK + 1e-6 * steps_K.abs()).argmin(-1)
        return mppi_weights(cost_BC, temperatures_K[chosen_B].unsqueeze(-1))
