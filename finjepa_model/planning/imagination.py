"""The imagined market: what planning needs of a world model, and the moments of returns.

Shapes: B decision dates, C candidates, H decision steps, N assets, M = N + 1 (the market proxy last), D latent width, K models
of an ensemble.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.planning.plan import project_to_simplex
from finjepa_model.portfolio import PortfolioState


@dataclass(frozen=True)
class Rollout:
    """What candidates lead to, step by step, if returns are as expected. Shares are of the wealth before the step's trade."""

    actions: PortfolioAction
    held_BCHN: Tensor  # signed shares of wealth after drift, before each trade
    holdings_BCHN: Tensor  # and after it
    hedge_BCH: Tensor  # value of the market proxy after each trade, negative when sold
    growth_BCH: Tensor  # log growth of wealth, costs included
    cost_BCH: Tensor  # trading costs and borrow fees
    turnover_BCH: Tensor  # one-way


class ImaginedMarket(Protocol):
    """The market, rolled out once, and a way to roll portfolios in it."""

    @property
    def mean_BHN(self) -> Tensor: ...  # expected simple return over each decision step
    @property
    def covariance_BHMM(self) -> Tensor: ...  # of the assets and, last, of the market proxy
    @property
    def beta_BN(self) -> Tensor: ...
    @property
    def present_BN(self) -> Tensor: ...
    def portfolio_path(self, state: PortfolioState, planned: Rollout) -> Tensor:
        """Portfolio latents_BCHD after each step."""
        ...

    def encode_portfolio(self, holdings_BCN: Tensor, scalars_BCG: Tensor) -> Tensor:
        """Portfolio latents_BCD in the market of now."""
        ...

    def position(self, latents_XD: Tensor) -> Tensor:
        """What portfolio latents say of where a portfolio is, without what it took to get there."""
        ...


@dataclass(frozen=True)
class Ensemble:
    """Several models of one market as one imagination: the moments of their mixture, and all their portfolio latents.

    Planners exploit the errors of a model; where models disagree there is an error (Chua et al. 2018).
    """

    members: Sequence[ImaginedMarket]

    @property
    def member_means_KBHN(self) -> Tensor:
        return torch.stack([member.mean_BHN for member in self.members])

    @property
    def mean_BHN(self) -> Tensor:
        return self.member_means_KBHN.mean(0)

    @property
    def covariance_BHMM(self) -> Tensor:
        """Within models and between them, by the law of total covariance."""
        within_BHMM = torch.stack([member.covariance_BHMM for member in self.members]).mean(0)
        gap_KBHN = self.member_means_KBHN - self.mean_BHN
        between_BHNN = torch.einsum("kbhn,kbhm->bhnm", gap_KBHN, gap_KBHN) / len(self.members)
        return within_BHMM + F.pad(between_BHNN, (0, 1, 0, 1))

    @property
    def beta_BN(self) -> Tensor:
        return self.members[0].beta_BN

    @property
    def present_BN(self) -> Tensor:
        return self.members[0].present_BN

    def portfolio_path(self, state: PortfolioState, planned: Rollout) -> Tensor:
        """The latents of all models side by side, so that a mean squared distance is the mean of theirs."""
        return torch.cat([member.portfolio_path(state, planned) for member in self.members], dim=-1)

    def encode_portfolio(self, holdings_BCN: Tensor, scalars_BCG: Tensor) -> Tensor:
        """See `portfolio_path`."""
        return torch.cat([member.encode_portfolio(holdings_BCN, scalars_BCG) for member in self.members], dim=-1)

    def position(self, latents_XD: Tensor) -> Tensor:
        """See `portfolio_path`."""
        parts = latents_XD.chunk(len(self.members), dim=-1)
        return torch.cat([member.position(part) for member, part in zip(self.members, parts, strict=True)], dim=-1)


def portfolio_variance(holdings_BCN: Tensor, hedge_BC: Tensor, covariance_BMM: Tensor) -> Tensor:
    """variance_BC of portfolios of assets and, last, the market proxy."""
    both_BCM = torch.cat([holdings_BCN, hedge_BC.unsqueeze(-1)], dim=-1)
    return ((both_BCM @ covariance_BMM) * both_BCM).sum(-1)


def one_factor_covariance(volatility_BHN: Tensor, market_volatility_BH: Tensor, beta_BN: Tensor) -> Tensor:
    """covariance_BHMM where the market proxy is the one factor: b_i b_j s_m^2 + (i = j) max(s_i^2 - b_i^2 s_m^2, s_i^2 / 20)."""
    factor_BHM = F.pad(beta_BN, (0, 1), value=1.0).unsqueeze(1) * market_volatility_BH.unsqueeze(-1)
    variance_BHN = volatility_BHN.square()
    specific_BHN = torch.maximum(variance_BHN - factor_BHM[..., :-1].square(), 0.05 * variance_BHN)
    return factor_BHM.unsqueeze(-1) * factor_BHM.unsqueeze(-2) + torch.diag_embed(F.pad(specific_BHN, (0, 1)))


@dataclass(frozen=True)
class Moments:
    """Simple returns over each decision step; absent assets have zeros throughout."""

    mean_BHN: Tensor
    market_mean_BH: Tensor
    beta_BN: Tensor  # trailing: by which the simulator hedges
    covariance_BHMM: Tensor
    present_BN: Tensor
    member_means_KBHN: Tensor | None = None  # of each model, where the imagination is that of an ensemble

    @classmethod
    def of(cls, imagination: ImaginedMarket) -> "Moments":
        """The market proxy is an equal-weight index, so its expected return is the mean over the present assets."""
        present_BN = imagination.present_BN
        present_B1N, present_BM = present_BN.unsqueeze(1), F.pad(present_BN, (0, 1), value=True)
        both_B1MM = (present_BM.unsqueeze(-1) & present_BM.unsqueeze(-2)).unsqueeze(1)
        mean_BHN = torch.where(present_B1N, imagination.mean_BHN, 0.0)
        return cls(
            mean_BHN,
            mean_BHN.sum(-1) / present_B1N.sum(-1).clamp(min=1),
            torch.where(present_BN, imagination.beta_BN, 0.0),
            torch.where(both_B1MM, imagination.covariance_BHMM, 0.0),
            present_BN,
            torch.where(present_B1N, imagination.member_means_KBHN, 0.0) if isinstance(imagination, Ensemble) else None,
        )

    def variance(self, holdings_BCN: Tensor, hedge_BC: Tensor | None = None, step: int = 0) -> Tensor:
        """variance_BC of portfolios of assets and the market proxy over one decision step."""
        hedge_BC = torch.zeros_like(holdings_BCN[..., 0]) if hedge_BC is None else hedge_BC
        return portfolio_variance(holdings_BCN, hedge_BC, self.covariance_BHMM[:, step])

    def best_holdings(self, risk_aversion: float | Tensor, max_weight: float = 1.0, iterations: int = 100) -> Tensor:
        """holdings_BN: argmax of mean'w - risk_aversion / 2 w'Cov w over the (capped) simplex, for the first decision step.

        Accelerated projected gradient with the exact projection and restarts (Beck and Teboulle 2009; O'Donoghue and
        Candes 2015), a fixed number of iterations, all dates at once.

        Args:
            risk_aversion: a number, or one for each date [B, 1].
        """
        mean_BN, covariance_BNN = self.mean_BHN[:, 0], self.covariance_BHMM[:, 0, :-1, :-1]
        steepest_B1 = torch.linalg.eigvalsh(covariance_BNN)[:, -1:]
        rate_B1 = 1 / (risk_aversion * steepest_B1).clamp(min=1e-12)
        here_BN = project_to_simplex(torch.zeros_like(mean_BN), self.present_BN, max_weight)
        ahead_BN, pace_B1 = here_BN, torch.ones_like(rate_B1)
        for _ in range(iterations):
            ascent_BN = mean_BN - risk_aversion * (covariance_BNN @ ahead_BN.unsqueeze(-1)).squeeze(-1)
            next_BN = project_to_simplex(ahead_BN + rate_B1 * ascent_BN, self.present_BN, max_weight)
            move_BN = next_BN - here_BN
            uphill_B1 = ((ahead_BN - next_BN) * move_BN).sum(-1, keepdim=True) <= 0  # or else the momentum overshot
            faster_B1 = (1 + (1 + 4 * pace_B1.square()).sqrt()) / 2
            ahead_BN = next_BN + torch.where(uphill_B1, (pace_B1 - 1) / faster_B1, 0.0) * move_BN
            pace_B1 = torch.where(uphill_B1, faster_B1, 1.0)
            here_BN = next_BN
        return here_BN

    def hedge_pays(self, holdings_BN: Tensor, risk_aversion: float, price_B: Tensor | float = 0.0) -> Tensor:
        """Whether to short the market proxy by the beta b of the holdings in the first decision step: bool_B, in closed form.

        With c the covariance of holdings and market proxy, the hedge takes 2 b c - b^2 s_m^2 off the variance, and b times the
        market's expected return and b times `price` (trading cost and borrow fee per unit of the proxy) off the return. It pays
        when and only when b is positive and risk_aversion / 2 (2 c - b s_m^2) exceeds the two.
        """
        beta_B = (holdings_BN * self.beta_BN).sum(-1)
        with_market_B = (holdings_BN * self.covariance_BHMM[:, 0, :-1, -1]).sum(-1)
        relief_B = risk_aversion / 2 * (2 * with_market_B - beta_B * self.covariance_BHMM[:, 0, -1, -1])
        return (beta_B > 0) & (relief_B > self.market_mean_BH[:, 0] + price_B)
