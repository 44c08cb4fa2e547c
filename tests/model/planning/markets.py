"""A market with known moments, and a world model that knows them: what planners are measured on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from finjepa_model.config import PortfolioConfig
from finjepa_model.planning.imagination import Rollout, one_factor_covariance
from finjepa_model.planning.objective import PlanningWorld
from finjepa_model.planning.plan import ActionSpace
from finjepa_model.portfolio import PortfolioSimulator, PortfolioState

FREE = PortfolioConfig(cost_bps=0.0, hedge_cost_bps=0.0, borrow_rate=0.0, allow_hedge=False)


@dataclass
class PerfectImagination:
    """True moments; its portfolio latent is the exact state itself: positions asked for and the hedge."""

    mean_BHN: Tensor
    covariance_BHMM: Tensor
    beta_BN: Tensor
    present_BN: Tensor

    def portfolio_path(self, state: PortfolioState, planned: Rollout) -> Tensor:
        drifted_BCHN = planned.actions.positions(False) * (1 + self.mean_BHN.unsqueeze(1))
        return torch.cat([drifted_BCHN, planned.actions.hedge_X.unsqueeze(-1)], -1)

    def encode_portfolio(self, holdings_BCN: Tensor, scalars_BCG: Tensor) -> Tensor:
        growth_BC1 = torch.exp(scalars_BCG[..., 6:7] / 10)
        hedged_BC1 = (scalars_BCG[..., 4:5].abs() > 1e-9).to(holdings_BCN.dtype)
        return torch.cat([holdings_BCN * growth_BC1, hedged_BC1], -1)

    def position(self, latents_XD: Tensor) -> Tensor:
        return latents_XD


def perfect_market(
    dates: int, horizon: int, assets: int, seed: int = 0, drift: float = 0.002, dispersion: float = 0.004
) -> PerfectImagination:
    """Weekly moments like those of large stocks, the same at every step of the horizon."""
    generator = torch.Generator().manual_seed(seed)
    mean_B1N = drift + dispersion * torch.randn(dates, 1, assets, generator=generator)
    beta_BN = 0.5 + torch.rand(dates, assets, generator=generator)
    specific_B1N = 0.02 + 0.03 * torch.rand(dates, 1, assets, generator=generator)
    volatility_B1N = (specific_B1N.square() + (0.02 * beta_BN.unsqueeze(1)).square()).sqrt()
    covariance_BHMM = one_factor_covariance(
        volatility_B1N.expand(-1, horizon, -1), torch.full((dates, horizon), 0.02), beta_BN
    )
    present_BN = torch.ones(dates, assets, dtype=torch.bool)
    return PerfectImagination(mean_B1N.expand(-1, horizon, -1), covariance_BHMM, beta_BN, present_BN)


def world_of(imagination: PerfectImagination, config: PortfolioConfig = FREE) -> tuple[PlanningWorld, ActionSpace]:
    """All in cash at the start."""
    dates, horizon, assets = imagination.mean_BHN.shape
    simulator = PortfolioSimulator(config)
    world = PlanningWorld.of(imagination, simulator, simulator.start((dates, assets)), sessions=5)
    return world, ActionSpace.from_config(config, imagination.present_BN, horizon)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
