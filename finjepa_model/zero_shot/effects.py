"""What a position, or the hedge, is worth to a task in the step that comes: closed form, to first order in costs.

The actor follows these slopes, so that it need not learn what the mechanics and the moments already say. A test holds them
against the derivatives of the exact mechanics.

Shapes: Y portfolios, H states of the hedge, N assets, Q consequences.
"""

import torch
from torch import Tensor

from finjepa_model.planning.quantities import TAIL_QUANTILE
from finjepa_model.planning.rollout import PlanningWorld
from finjepa_model.zero_shot.situation import CONSEQUENCES

_LEAST_VARIANCE = 1e-10  # the root's slope is infinite at 0, where cash is


class Effects:
    """Of positions on what the consequences of a step are worth, in one world, with the hedge off and, where there is one, on.

    Attributes:
        traded_YN: what trading a unit of an asset costs the task; N may be 1.
    """

    def __init__(self, world: PlanningWorld, price_YQ: Tensor):
        """
        Args:
            price_YQ: of a unit of each consequence.
        """
        moments, state, rules = world.moments, world.state, world.simulator.config
        self.price_Y1 = price_Y1 = dict(zip(CONSEQUENCES, price_YQ.split(1, dim=-1), strict=True))
        self.mean_YN, self.market_mean_Y1 = moments.mean_BHN[:, 0], moments.market_mean_BH[:, :1]
        self.beta_YN, self.specific_YN = moments.beta_BN, moments.specific_variance_BHN[:, 0]
        self.market_variance_Y1 = moments.market_variance_BH[:, :1]
        self.hedge_cost, self.allow_short = 1e-4 * rules.hedge_cost_bps, rules.allow_short
        from_peak_Y1 = (state.wealth_X / state.peak_X).unsqueeze(-1)
        self.growth_Y1 = price_Y1["log_growth"] - from_peak_Y1 * price_Y1["drawdown"]
        self.volatility_Y1 = price_Y1["volatility"] + TAIL_QUANTILE * from_peak_Y1 * price_Y1["drawdown"]

        spread = 1e-4 * rules.cost_bps if world.frictions is None else world.frictions.spread
        spread = spread.squeeze(1) if isinstance(spread, Tensor) else spread
        traded_YN = spread * (price_Y1["log_growth"] - price_Y1["cost"]) - price_Y1["turnover"] / 2
        self.traded_YN = traded_YN.clamp(min=0)

        # what a hedge leaves of the betas, and of what they earn
        growth_HYN, self.open_HYN = self.mean_YN.unsqueeze(0), self.beta_YN.unsqueeze(0)
        if rules.allow_hedge:
            growth_HYN = torch.stack([self.mean_YN, self.mean_YN - self.market_mean_Y1 * self.beta_YN])
            self.open_HYN = torch.stack([self.beta_YN, torch.zeros_like(self.beta_YN)])
        self.steady_HYN = self.growth_Y1 * growth_HYN + price_Y1["net"] + price_Y1["beta"] * self.open_HYN

    def slopes(self, positions_HYN: Tensor) -> Tensor:
        """By each position, without the costs of trading: slope_HYN."""
        exposure_HY1 = self.market_variance_Y1 * (positions_HYN * self.open_HYN).sum(-1, keepdim=True)
        risk_HYN = exposure_HY1 * self.open_HYN + self.specific_YN * positions_HYN  # half the slope of the variance
        variance_HY1 = (risk_HYN * positions_HYN).sum(-1, keepdim=True)
        price_HY1 = 2 * self.price_Y1["variance"] + self.volatility_Y1 * variance_HY1.clamp(min=_LEAST_VARIANCE).rsqrt()
        slope_HYN = self.steady_HYN + price_HY1 * risk_HYN + 2 * self.price_Y1["concentration"] * positions_HYN
        return slope_HYN - self.price_Y1["short"] * (positions_HYN < 0) if self.allow_short else slope_HYN

    def curvatures(self) -> Tensor:
        """Second derivatives by each position alone, of what is quadratic: variance and concentration; [H, Y, N]."""
        variance_HYN = self.market_variance_Y1 * self.open_HYN.square() + self.specific_YN
        return 2 * (self.price_Y1["variance"] * variance_HYN + self.price_Y1["concentration"])

    def of_hedge(self, open_YN: Tensor, hedged_YN: Tensor) -> Tensor:
        """What hedged positions are worth beyond other positions without a hedge, but for the costs of trading the assets:
        worth_Y1."""
        price_Y1, change_YN = self.price_Y1, hedged_YN - open_YN
        open_beta_Y1, beta_Y1 = ((x_YN * self.beta_YN).sum(-1, keepdim=True) for x_YN in (open_YN, hedged_YN))
        short_Y1 = beta_Y1.clamp(min=0)
        left_Y1, cost_Y1 = beta_Y1 - short_Y1, self.hedge_cost * short_Y1
        growth_Y1 = (change_YN * self.mean_YN).sum(-1, keepdim=True) - short_Y1 * self.market_mean_Y1 - cost_Y1
        variance_Y1 = self._variance(hedged_YN, left_Y1)
        open_variance_Y1 = self._variance(open_YN, open_beta_Y1)
        size_YN = hedged_YN.square() - open_YN.square()
        worth_Y1 = (
            self.growth_Y1 * growth_Y1
            + price_Y1["variance"] * (variance_Y1 - open_variance_Y1)
            + self.volatility_Y1 * (variance_Y1.sqrt() - open_variance_Y1.sqrt())
            + price_Y1["cost"] * cost_Y1
            + price_Y1["net"] * change_YN.sum(-1, keepdim=True)
            + price_Y1["beta"] * (left_Y1 - open_beta_Y1)
            + price_Y1["concentration"] * size_YN.sum(-1, keepdim=True)
            + price_Y1["hedge"]
        )
        if not self.allow_short:
            return worth_Y1
        shorts_YN = open_YN.clamp(max=0) - hedged_YN.clamp(max=0)
        return worth_Y1 + price_Y1["short"] * shorts_YN.sum(-1, keepdim=True)

    def _variance(self, positions_YN: Tensor, beta_Y1: Tensor) -> Tensor:
        specific_Y1 = (self.specific_YN * positions_YN.square()).sum(-1, keepdim=True)
        return (self.market_variance_Y1 * beta_Y1.square() + specific_Y1).clamp(min=_LEAST_VARIANCE)
