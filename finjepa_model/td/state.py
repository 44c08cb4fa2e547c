"""The state of TD-JEPA: where a portfolio stands at a decision, and what the step before brought.

Shapes: Y portfolios, each in a market of its own, N assets, D width of the world model, G portfolio scalars, O outcomes,
V numbers that an asset has of its own.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.planning.objective import PlanningWorld, quantities
from finjepa_model.portfolio import PortfolioState

if TYPE_CHECKING:
    from finjepa_model.world_model import Imagination

# What a step is expected to bring by the mechanics and the world model's moments: quantities of `planning.utility`, without
# those that are linear in the others (gross = net + 2 short, cash = 1 - net, cvar)
CONSEQUENCES = (
    "log_growth",
    "variance",
    "volatility",
    "drawdown",
    "cost",
    "turnover",
    "net",
    "short",
    "beta",
    "concentration",
    "hedge",
)
# and what it brought: a reward must be linear in the task features, so the realised return is among them, and its square
REALISED = ("realised_growth", "realised_square")
OUTCOMES = (*CONSEQUENCES, *REALISED)
# every quantity that a utility of the branch may contain
QUANTITY_NAMES = (*CONSEQUENCES, "gross", "cash", "cvar", *REALISED)

ASSET_NUMBERS = 5
_USUAL_VOLATILITY = 0.03  # of a share over a decision step


@dataclass(frozen=True)
class PolicyState:
    """The state s.

    Attributes:
        assets_YND, market_YD, portfolio_YD: latents.
        own_YNV: of each asset: position, last signal, expected return over volatility, log volatility, beta.
        scalars_YG: `PortfolioState.scalars`.
        present_YN: bool.
        outcome_YO: `OUTCOMES` of the step before, 0 at the start.
        world: the rules and moments by which an action has consequences.
    """

    assets_YND: Tensor
    market_YD: Tensor
    portfolio_YD: Tensor
    own_YNV: Tensor
    scalars_YG: Tensor
    present_YN: Tensor
    outcome_YO: Tensor
    world: PlanningWorld

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        imagination: "Imagination",
        world: PlanningWorld,
        outcome_YO: Tensor | None = None,
    ) -> "PolicyState":
        """
        Args:
            imagination: of Y markets; the world is made of it and of the Y portfolios.
            outcome_YO: 0 where None.
        """
        state, moments, present_YN = world.state, world.moments, imagination.present_BN
        assets_YND, market_YD = imagination.tokens_BMD[:, :-1], imagination.tokens_BMD[:, -1]
        scalars_YG = state.scalars(moments.beta_BN)
        mean_YN = imagination.mean_BHN[:, 0]
        volatility_YN = imagination.covariance_BHMM[:, 0].diagonal(dim1=-2, dim2=-1)[:, :-1].sqrt()
        own_YNV = torch.stack(
            [
                state.holdings_XN,
                state.signals_XN,
                mean_YN / volatility_YN,
                torch.log(volatility_YN / _USUAL_VOLATILITY),
                moments.beta_BN - 1,
            ],
            dim=-1,
        )
        return cls(
            assets_YND=assets_YND,
            market_YD=market_YD,
            portfolio_YD=imagination.model.portfolio_encoder(
                state.holdings_XN, state.signals_XN, scalars_YG, assets_YND.detach(), present_YN
            ),
            own_YNV=own_YNV * present_YN.unsqueeze(-1),
            scalars_YG=scalars_YG,
            present_YN=present_YN,
            outcome_YO=torch.zeros(len(scalars_YG), len(OUTCOMES)).to(scalars_YG) if outcome_YO is None else outcome_YO,
            world=world,
        )

    @property
    def held_YN(self) -> Tensor:
        return self.world.state.holdings_XN

    def quantities(self, action: PortfolioAction, names: tuple[str, ...] = CONSEQUENCES) -> Tensor:
        """What an action is expected to bring: value_YQ, a column for each name."""
        rollout = self.world.roll(action.map(lambda x: x[:, None, None]))
        values = quantities(self.world, rollout, names)
        return torch.stack([values[name][:, 0, 0] for name in names], dim=-1)


def realised(before: PortfolioState, after: PortfolioState) -> Tensor:
    """`REALISED` of the step between two states: [Y, 2]."""
    growth_Y = torch.log(after.wealth_X.clamp(min=1e-6) / before.wealth_X.clamp(min=1e-6))
    return torch.stack([growth_Y, growth_Y.square()], dim=-1)
