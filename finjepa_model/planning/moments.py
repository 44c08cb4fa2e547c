"""Mean and covariance of the imagined returns under the one-factor model, and the holdings that are best under them.

cov_ij = beta_i beta_j s_m^2 + (i = j) max(s_i^2 - beta_i^2 s_m^2, 0.05 s_i^2), s_m the volatility of the market proxy.

Shapes: B decision dates, C candidates, H decision steps, N assets, D latent width, K models of an ensemble.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.planning.space import project_to_simplex
from finjepa_model.portfolio import PortfolioState

_SPECIFIC_SHARE = 0.05  # of an asset's variance, at least, is its own


class Imagination(Protocol):
    """What planning asks of a world model: the market rolled out once, and a way to roll portfolios in it."""

    @property
    def mean_BHN(self) -> Tensor: ...  # expected simple return over each decision step
    @property
    def volatility_BHN(self) -> Tensor: ...
    @property
    def market_volatility_BH(self) -> Tensor: ...
    @property
    def beta_BN(self) -> Tensor: ...
    @property
    def present_BN(self) -> Tensor: ...
    def portfolio_path(self, state: PortfolioState, held_BCHN: Tensor, actions: PortfolioAction) -> Tensor:
        """Portfolio latents_BCHD after each step; `held` are the holdings before each trade."""
        ...

    def encode_portfolio(self, holdings_BCN: Tensor, signals_BCN: Tensor, scalars_BCG: Tensor) -> Tensor:
        """Portfolio latents_BCD in the market of now."""
        ...


@dataclass(frozen=True)
class Ensemble:
    """Several models of one market as one imagination: the moments of their mixture, and all their portfolio latents.

    Planners exploit the errors of a model; where models disagree there is an error (Chua et al. 2018).
    """

    members: Sequence[Imagination]

    @property
    def member_means_KBHN(self) -> Tensor:
        return torch.stack([member.mean_BHN for member in self.members])

    @property
    def mean_BHN(self) -> Tensor:
        return self.member_means_KBHN.mean(0)

    @property
    def volatility_BHN(self) -> Tensor:
        """Within models and between them, by the law of total variance."""
        within_BHN = torch.stack([member.volatility_BHN for member in self.members]).square().mean(0)
        return (within_BHN + self.member_means_KBHN.var(0, correction=0)).sqrt()

    @property
    def market_volatility_BH(self) -> Tensor:
        return torch.stack([member.market_volatility_BH for member in self.members]).square().mean(0).sqrt()

    @property
    def beta_BN(self) -> Tensor:
        return self.members[0].beta_BN

    @property
    def present_BN(self) -> Tensor:
        return self.members[0].present_BN

    def portfolio_path(self, state: PortfolioState, held_BCHN: Tensor, actions: PortfolioAction) -> Tensor:
        """The latents of all models side by side, so that a mean squared distance is the mean of theirs."""
        return torch.cat([member.portfolio_path(state, held_BCHN, actions) for member in self.members], dim=-1)

    def encode_portfolio(self, holdings_BCN: Tensor, signals_BCN: Tensor, scalars_BCG: Tensor) -> Tensor:
        """See `portfolio_path`."""
        seen = (holdings_BCN, signals_BCN, scalars_BCG)
        return torch.cat([member.encode_portfolio(*seen) for member in self.members], dim=-1)


@dataclass(frozen=True)
class Moments:
    """Simple returns over each decision step; absent assets have zeros throughout."""

    mean_BHN: Tensor
    market_mean_BH: Tensor
    beta_BN: Tensor
    market_variance_BH: Tensor
    specific_variance_BHN: Tensor
    present_BN: Tensor
    member_means_KBHN: Tensor | None = None  # of each model, where the imagination is that of an ensemble

    @classmethod
    def of(cls, imagination: Imagination) -> "Moments":
        """The market proxy is an equal-weight index, so its expected return is the mean over the present assets."""
        present_BN = imagination.present_BN
        present_B1N = present_BN.unsqueeze(1)
        mean_BHN = torch.where(present_B1N, imagination.mean_BHN, 0.0)
        variance_BHN = torch.where(present_B1N, imagination.volatility_BHN, 0.0).square()
        beta_BN = torch.where(present_BN, imagination.beta_BN, 0.0)
        market_variance_BH = imagination.market_volatility_BH.square()
        systematic_BHN = beta_BN.square().unsqueeze(1) * market_variance_BH.unsqueeze(-1)
        specific_BHN = torch.maximum(variance_BHN - systematic_BHN, _SPECIFIC_SHARE * variance_BHN)
        market_mean_BH = mean_BHN.sum(-1) / present_B1N.sum(-1).clamp(min=1)
        members_KBHN = imagination.member_means_KBHN if isinstance(imagination, Ensemble) else None
        if members_KBHN is not None:
            members_KBHN = torch.where(present_B1N, members_KBHN, 0.0)
        return cls(mean_BHN, market_mean_BH, beta_BN, market_variance_BH, specific_BHN, present_BN, members_KBHN)

    def best_holdings(
        self, risk_aversion: float | Tensor, max_weight: float = 1.0, step: int = 0, iterations: int = 100
    ) -> Tensor:
        """argmax of mean'w - risk_aversion / 2 w'Cov w over the (capped) simplex, for one decision step.

        Accelerated projected gradient with the exact projection and restarts (Beck and Teboulle 2009; O'Donoghue and
        Candes 2015), a fixed number of iterations, all dates at once.

        Args:
            risk_aversion: a number, or one for each date [B, 1].

        Returns:
            holdings_BN.
        """
        mean_BN, specific_BN = self.mean_BHN[:, step], risk_aversion * self.specific_variance_BHN[:, step]
        factor_BN = self.beta_BN * (risk_aversion * self.market_variance_BH[:, step, None]).sqrt()
        smoothness_B1 = specific_BN.amax(-1, keepdim=True) + factor_BN.square().sum(-1, keepdim=True)
        rate_B1 = 1 / smoothness_B1.clamp(min=1e-12)
        here_BN = project_to_simplex(torch.zeros_like(mean_BN), self.present_BN, max_weight)
        ahead_BN, pace_B1 = here_BN, torch.ones_like(rate_B1)
        for _ in range(iterations):
            exposure_B1 = (factor_BN * ahead_BN).sum(-1, keepdim=True)
            ascent_BN = mean_BN - specific_BN * ahead_BN - factor_BN * exposure_B1
            next_BN = project_to_simplex(ahead_BN + rate_B1 * ascent_BN, self.present_BN, max_weight)
            move_BN = next_BN - here_BN
            uphill_B1 = ((ahead_BN - next_BN) * move_BN).sum(-1, keepdim=True) <= 0  # or else the momentum overshot
            faster_B1 = (1 + (1 + 4 * pace_B1.square()).sqrt()) / 2
            ahead_BN = next_BN + torch.where(uphill_B1, (pace_B1 - 1) / faster_B1, 0.0) * move_BN
            pace_B1 = torch.where(uphill_B1, faster_B1, 1.0)
            here_BN = next_BN
        return here_BN

    def hedge_pays(
        self, holdings_BN: Tensor, risk_aversion: float, price_B: Tensor | float = 0.0, step: int = 0
    ) -> Tensor:
        """Whether to short the market proxy by the beta b of the holdings: bool_B, in closed form.

        The hedge takes b^2 s_m^2 off the variance, and b times the market's expected return and b times `price`
        (trading cost and borrow fee per unit of the proxy) off the return. It pays when and only when b is positive and
        risk_aversion / 2 b s_m^2 exceeds the two.
        """
        beta_B = (holdings_BN * self.beta_BN).sum(-1)
        relief_B = risk_aversion / 2 * beta_B * self.market_variance_BH[:, step]
        return (beta_B > 0) & (relief_B > self.market_mean_BH[:, step] + price_B)
