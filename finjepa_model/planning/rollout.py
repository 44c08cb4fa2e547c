"""Candidates rolled through the exact portfolio mechanics along the imagined market.

Shapes: B decision dates, C candidates, H decision steps, N assets, D latent width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.costs import Frictions, Liquidity
from finjepa_model.planning.moments import Imagination, Moments
from finjepa_model.portfolio import PortfolioSimulator, PortfolioState


@dataclass(frozen=True)
class Rollout:
    """What candidates lead to, step by step, if returns are as expected. Shares are of the wealth before the step's trade.

    Attributes:
        held_BCHN: signed shares of wealth after drift, before each trade.
        holdings_BCHN, hedge_BCH: positions and market proxy after each trade.
        growth_BCH: log growth of wealth, costs included.
        cost_BCH: trading costs and borrow fees, share of wealth.
        turnover_BCH: one-way, share of wealth.
    """

    actions: PortfolioAction
    held_BCHN: Tensor
    holdings_BCHN: Tensor
    hedge_BCH: Tensor
    growth_BCH: Tensor
    cost_BCH: Tensor
    turnover_BCH: Tensor


@dataclass(frozen=True)
class PlanningWorld:
    """Everything that a cost function may look at: the imagined market, the rules of trading, and what is held now.

    Attributes:
        state: of the B portfolios now.
        sessions: length of a decision step, for interest and borrow fees.
        tradable_BN: bool, who can be traded now; None means all. It holds for the first step; later ones trade freely.
        frictions: what trading each asset costs, [B, 1, N].
        goal_BD: portfolio latent that is aimed for; None where no cost asks for one.
        goals: the latent goal_BD of each goal that a utility names, as it is written there.
    """

    imagination: Imagination
    simulator: PortfolioSimulator
    state: PortfolioState
    sessions: int
    moments: Moments
    tradable_BN: Tensor | None = None
    frictions: Frictions | None = None
    goal_BD: Tensor | None = None
    goals: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        imagination: Imagination,
        simulator: PortfolioSimulator,
        state: PortfolioState,
        sessions: int,
        tradable_BN: Tensor | None = None,
        liquidity: Liquidity | None = None,
        goal_BD: Tensor | None = None,
        goals: Mapping[str, Tensor] | None = None,
    ) -> "PlanningWorld":
        """In the precision and on the device of the imagination.

        Args:
            liquidity: of the assets, [B, N]; None where it is unknown, so that only the flat costs are charged.
        """
        moments = Moments.of(imagination)
        prices = simulator.frictions(liquidity).map(lambda x: x.to(moments.mean_BHN).unsqueeze(1))
        state = state.map(lambda x: x.to(moments.mean_BHN))
        return cls(imagination, simulator, state, sessions, moments, tradable_BN, prices, goal_BD, goals or {})

    def roll(self, actions: PortfolioAction) -> Rollout:
        """Trade and drift at the expected returns; a loop over steps, never over candidates.

        The fill is at once, while real ones come a session later; over a step the difference is one session's drift.
        """
        moments, state = self.moments, self.state.map(lambda x: x.unsqueeze(1))
        beta_B1N = moments.beta_BN.unsqueeze(1)
        steps = []
        for step in range(actions.hedge_X.shape[-1]):
            before_X = state.wealth_X
            zero_X = torch.zeros_like(before_X)
            state = replace(state, decided_wealth_X=before_X, step_cost_X=zero_X, step_turnover_X=zero_X)
            held_XN = state.holdings_XN
            tradable_BN = self.tradable_BN if step == 0 else None
            state, _ = self.simulator.trade(
                state,
                actions.map(lambda x, step=step: x[:, :, step]),
                beta_B1N,
                None if tradable_BN is None else tradable_BN.unsqueeze(1),
                self.frictions,
            )
            holdings_XN, hedge_X = state.positions_XN / before_X.unsqueeze(-1), state.hedge_X / before_X
            state, _ = self.simulator.drift(
                state,
                moments.mean_BHN[:, step, None],
                moments.market_mean_BH[:, step, None],
                self.sessions,
                self.frictions,
            )
            growth_X = torch.log(state.wealth_X / before_X)
            held_XN = held_XN.expand_as(holdings_XN)
            steps.append((held_XN, holdings_XN, hedge_X, growth_X, state.step_cost_X / before_X, state.step_turnover_X))
        return Rollout(actions, *(torch.stack(parts, 2) for parts in zip(*steps, strict=True)))
