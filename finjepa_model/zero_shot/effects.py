"""What a change of a position, or of the hedge, does to the consequences of a step: closed form, to first order in costs.

The actor reads these beside the task, so that it need not learn what the mechanics and the moments already say. A test holds
them against the derivatives of the exact mechanics.

Shapes: Y portfolios, N assets, Q consequences.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from finjepa_model.planning.quantities import TAIL_QUANTILE
from finjepa_model.planning.rollout import PlanningWorld

_LEAST_VARIANCE = 1e-10  # the root's slope is infinite at 0, where cash is


class Effects:
    """Of the positions on the step that comes, in one world; the forecasts are looked up once."""

    def __init__(self, world: PlanningWorld, times: int = 1):
        """
        Args:
            times: how often the portfolios stand here, one after the other.
        """
        moments, state = world.moments, world.state

        def rows(x_YN: Tensor) -> Tensor:
            return x_YN.repeat(times, 1)

        self.mean_YN, self.market_mean_Y1 = rows(moments.mean_BHN[:, 0]), rows(moments.market_mean_BH[:, :1])
        self.beta_YN, self.specific_YN = rows(moments.beta_BN), rows(moments.specific_variance_BHN[:, 0])
        self.market_variance_Y1 = rows(moments.market_variance_BH[:, :1])
        self.from_peak_Y1 = rows((state.wealth_X / state.peak_X).unsqueeze(-1))
        self.hedge_cost = 1e-4 * world.simulator.config.hedge_cost_bps

    def of_positions(self, positions_YN: Tensor, hedge_Y: Tensor) -> Tensor:
        """Slopes of the consequences that are smooth in the positions, without the costs of trading: [Y, N, Q]."""
        open_YN = self.beta_YN * (1 - hedge_Y).unsqueeze(-1)  # what the hedge leaves of the betas
        growth_YN = self.mean_YN - (hedge_Y.unsqueeze(-1) * self.market_mean_Y1) * self.beta_YN
        beta_Y1 = (positions_YN * open_YN).sum(-1, keepdim=True)
        variance_YN = 2 * (self.market_variance_Y1 * beta_Y1 * open_YN + self.specific_YN * positions_YN)
        volatility_YN = variance_YN / (2 * self._volatility(positions_YN, beta_Y1))
        drawdown_YN = self.from_peak_Y1 * (TAIL_QUANTILE * volatility_YN - growth_YN)
        zero_YN = torch.zeros_like(growth_YN)
        # in the order of `CONSEQUENCES`
        return torch.stack(
            [
                growth_YN, variance_YN, volatility_YN, drawdown_YN, zero_YN, zero_YN, zero_YN + 1,
                -(positions_YN < 0).to(zero_YN.dtype), open_YN, 2 * positions_YN, zero_YN,
            ],
            dim=-1,
        )  # fmt: skip

    def curvatures(self, hedge_Y: Tensor) -> Tensor:
        """Second derivatives of variance and concentration, which are quadratic, by each position alone: [Y, N, Q]."""
        open_YN = self.beta_YN * (1 - hedge_Y).unsqueeze(-1)
        variance_YN = 2 * (self.market_variance_Y1 * open_YN.square() + self.specific_YN)
        zero_YN = torch.zeros_like(variance_YN)
        return torch.stack(
            [zero_YN, variance_YN, *[zero_YN] * 7, zero_YN + 2, zero_YN],
            dim=-1,
        )

    def of_hedge(self, hedged_YN: Tensor, open_YN: Tensor) -> Tensor:
        """Consequences of hedged positions less those of other positions without a hedge, but for the costs of trading the
        assets: [Y, Q]."""
        beta_Y1, other_beta_Y1 = ((x_YN * self.beta_YN).sum(-1, keepdim=True) for x_YN in (hedged_YN, open_YN))
        short_Y1 = beta_Y1.clamp(min=0)
        left_Y1, cost_Y1 = beta_Y1 - short_Y1, self.hedge_cost * short_Y1
        growth_Y1 = (
            ((hedged_YN - open_YN) * self.mean_YN).sum(-1, keepdim=True) - short_Y1 * self.market_mean_Y1 - cost_Y1
        )
        volatility_Y1 = self._volatility(hedged_YN, left_Y1)
        other_Y1 = self._volatility(open_YN, other_beta_Y1)
        drawdown_Y1 = self.from_peak_Y1 * (TAIL_QUANTILE * (volatility_Y1 - other_Y1) - growth_Y1)

        def change(function: Callable[[Tensor], Tensor]) -> Tensor:
            return (function(hedged_YN) - function(open_YN)).sum(-1, keepdim=True)

        return torch.cat(
            [
                growth_Y1, volatility_Y1.square() - other_Y1.square(), volatility_Y1 - other_Y1, drawdown_Y1, cost_Y1,
                torch.zeros_like(cost_Y1), change(lambda x: x), change(lambda x: x.clamp(max=0).neg()),
                left_Y1 - other_beta_Y1, change(torch.square), torch.ones_like(cost_Y1),
            ],
            dim=-1,
        )  # fmt: skip

    def _volatility(self, positions_YN: Tensor, beta_Y1: Tensor) -> Tensor:
        specific_Y1 = (self.specific_YN * positions_YN.square()).sum(-1, keepdim=True)
        return (self.market_variance_Y1 * beta_Y1.square() + specific_Y1).clamp(min=_LEAST_VARIANCE).sqrt()
