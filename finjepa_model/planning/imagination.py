"""The imagined market: moments of returns, and candidates rolled through the exact portfolio mechanics along it.

The covariance is that of the assets and the market proxy together, from the risk model. An imagination without one implies
one factor: cov_ij = beta_i beta_j s_m^2 + (i = j) max(s_i^2 - beta_i^2 s_m^2, 0.05 s_i^2), s_m the volatility of the market
proxy. Quantities of `planning.utility` are computed from a roll-out, each only when a utility names it.

Shapes: B decision dates, C candidates, H decision steps, N assets, M = N + 1 (the market proxy last), D latent width, K models
of an ensemble.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.space import project_to_simplex
from finjepa_model.portfolio import Frictions, Liquidity, PortfolioSimulator, PortfolioState

_SPECIFIC_SHARE = 0.05  # of an asset's variance, at least, is its own


class ImaginedMarket(Protocol):
    """What planning needs of a world model: the market rolled out once, and a way to roll portfolios in it."""

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

    members: Sequence[ImaginedMarket]

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
    def covariance_BHMM(self) -> Tensor:
        """Within models and between them, by the law of total covariance."""
        within_BHMM = torch.stack([covariance_of(member) for member in self.members]).mean(0)
        gap_KBHN = self.member_means_KBHN - self.mean_BHN
        between_BHNN = torch.einsum("kbhn,kbhm->bhnm", gap_KBHN, gap_KBHN) / len(self.members)
        return within_BHMM + torch.nn.functional.pad(between_BHNN, (0, 1, 0, 1))

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


def covariance_of(imagination: ImaginedMarket) -> Tensor:
    """covariance_BHMM of simple returns over each decision step; absent assets have zeros throughout."""
    present_BN = imagination.present_BN
    known_BHMM = getattr(imagination, "covariance_BHMM", None)
    if known_BHMM is not None:
        present_BM = torch.nn.functional.pad(present_BN, (0, 1), value=True)
        return torch.where((present_BM.unsqueeze(-1) & present_BM.unsqueeze(-2)).unsqueeze(1), known_BHMM, 0.0)
    variance_BHN = torch.where(present_BN.unsqueeze(1), imagination.volatility_BHN, 0.0).square()
    beta_BM = torch.nn.functional.pad(torch.where(present_BN, imagination.beta_BN, 0.0), (0, 1), value=1.0)
    factor_BHM = beta_BM.unsqueeze(1) * imagination.market_volatility_BH.unsqueeze(-1)
    specific_BHN = torch.maximum(variance_BHN - factor_BHM[..., :-1].square(), _SPECIFIC_SHARE * variance_BHN)
    specific_BHM = torch.nn.functional.pad(specific_BHN, (0, 1))
    return factor_BHM.unsqueeze(-1) * factor_BHM.unsqueeze(-2) + torch.diag_embed(specific_BHM)


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
        present_B1N = present_BN.unsqueeze(1)
        mean_BHN = torch.where(present_B1N, imagination.mean_BHN, 0.0)
        beta_BN = torch.where(present_BN, imagination.beta_BN, 0.0)
        market_mean_BH = mean_BHN.sum(-1) / present_B1N.sum(-1).clamp(min=1)
        members_KBHN = imagination.member_means_KBHN if isinstance(imagination, Ensemble) else None
        if members_KBHN is not None:
            members_KBHN = torch.where(present_B1N, members_KBHN, 0.0)
        return cls(mean_BHN, market_mean_BH, beta_BN, covariance_of(imagination), present_BN, members_KBHN)

    def variance(self, holdings_BCN: Tensor, hedge_BC: Tensor | None = None, step: int = 0) -> Tensor:
        """variance_BC of portfolios of assets and the market proxy over one decision step."""
        hedge_BC = torch.zeros_like(holdings_BCN[..., 0]) if hedge_BC is None else hedge_BC
        both_BCM = torch.cat([holdings_BCN, hedge_BC.unsqueeze(-1)], dim=-1)
        return ((both_BCM @ self.covariance_BHMM[:, step]) * both_BCM).sum(-1)

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
        mean_BN, covariance_BNN = self.mean_BHN[:, step], self.covariance_BHMM[:, step, :-1, :-1]
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

    def hedge_pays(
        self, holdings_BN: Tensor, risk_aversion: float, price_B: Tensor | float = 0.0, step: int = 0
    ) -> Tensor:
        """Whether to short the market proxy by the beta b of the holdings: bool_B, in closed form.

        With c the covariance of holdings and market proxy, the hedge takes 2 b c - b^2 s_m^2 off the variance, and b times the
        market's expected return and b times `price` (trading cost and borrow fee per unit of the proxy) off the return. It pays
        when and only when b is positive and risk_aversion / 2 (2 c - b s_m^2) exceeds the two.
        """
        beta_B = (holdings_BN * self.beta_BN).sum(-1)
        with_market_B = (holdings_BN * self.covariance_BHMM[:, step, :-1, -1]).sum(-1)
        relief_B = risk_aversion / 2 * (2 * with_market_B - beta_B * self.covariance_BHMM[:, step, -1, -1])
        return (beta_B > 0) & (relief_B > self.market_mean_BH[:, step] + price_B)


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
        goal_BD: portfolio latent of the goal; None where no cost needs one.
        goals: the latent goal_BD of each goal that a utility names, as it is written there.
    """

    imagination: ImaginedMarket
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
        imagination: ImaginedMarket,
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


_TAIL = 0.05
TAIL_QUANTILE = 1.6448536269514722  # of the standard normal distribution at 1 - _TAIL
_TAIL_MEAN = math.exp(-(TAIL_QUANTILE**2) / 2) / math.sqrt(2 * math.pi) / _TAIL  # its mean beyond that


def quantities(world: PlanningWorld, rollout: Rollout, names: Iterable[str]) -> dict[str, Tensor]:
    """The named quantities of every candidate and step, each value_BCH.

    Raises:
        FinJEPAError: for one that cannot be computed here: a disagreement without an ensemble, a distance
            without a goal.
    """
    named = sorted(names)
    goals = [name for name in named if name.startswith("goal(")]
    values = {name: _OF[name.partition("(")[0]](world, rollout) for name in named if name not in goals}
    if goals:
        latents_BCHD = _latents(world, rollout)
        values |= {name: _distance(latents_BCHD, world.goals[name]) for name in goals}
    return values


def variance(world: PlanningWorld, rollout: Rollout) -> Tensor:
    """Variance of each step's simple return: variance_BCH."""
    steps = range(rollout.hedge_BCH.shape[-1])
    parts = [world.moments.variance(rollout.holdings_BCHN[:, :, h], rollout.hedge_BCH[..., h], h) for h in steps]
    return torch.stack(parts, dim=-1)


def beta(world: PlanningWorld, rollout: Rollout) -> Tensor:
    return (rollout.holdings_BCHN * world.moments.beta_BN[:, None, None]).sum(-1) + rollout.hedge_BCH


def volatility(world: PlanningWorld, rollout: Rollout) -> Tensor:
    # the root's slope is infinite at 0, where cash is
    return variance(world, rollout).clamp(min=1e-16).sqrt()


def _cvar(world: PlanningWorld, rollout: Rollout) -> Tensor:
    return _TAIL_MEAN * volatility(world, rollout) - torch.expm1(rollout.growth_BCH)


def _drawdown(world: PlanningWorld, rollout: Rollout) -> Tensor:
    """On the path that is worse than 95 % of paths at each step, from the highest wealth before the plan."""
    deviation_BCH = variance(world, rollout).cumsum(-1).clamp(min=1e-16).sqrt()
    path_BCH = torch.exp(rollout.growth_BCH.cumsum(-1) - TAIL_QUANTILE * deviation_BCH)
    now_B11 = (world.state.wealth_X / world.state.peak_X)[:, None, None]
    return (1 - now_B11 * path_BCH).clamp(min=0)


def _disagreement(world: PlanningWorld, rollout: Rollout) -> Tensor:
    means_KBHN = world.moments.member_means_KBHN
    if means_KBHN is None:
        raise FinJEPAError("disagreement is that of an ensemble; name other checkpoints, as in disagreement('ID')")
    returns_KBCH = torch.einsum("bchn,kbhn->kbch", rollout.holdings_BCHN, means_KBHN)
    return returns_KBCH.var(0, correction=0).clamp(min=1e-16).sqrt()


def _goal_distance(world: PlanningWorld, rollout: Rollout) -> Tensor:
    if world.goal_BD is None:
        raise FinJEPAError("a utility with goal_distance needs a goal; see finjepa_model.planning.goals")
    return _distance(_latents(world, rollout), world.goal_BD)


def _latents(world: PlanningWorld, rollout: Rollout) -> Tensor:
    return world.imagination.portfolio_path(world.state, rollout.held_BCHN, rollout.actions)


def _distance(latents_BCHD: Tensor, goal_BD: Tensor) -> Tensor:
    return (latents_BCHD - goal_BD[:, None, None]).square().mean(-1)


def _final_goal_distance(world: PlanningWorld, rollout: Rollout) -> Tensor:
    distance_BCH = _goal_distance(world, rollout)
    return torch.cat([torch.zeros_like(distance_BCH[..., :-1]), distance_BCH[..., -1:]], dim=-1)


_OF: dict[str, Callable[[PlanningWorld, Rollout], Tensor]] = {
    "log_growth": lambda world, rollout: rollout.growth_BCH,
    "variance": variance,
    "volatility": volatility,
    "cvar": _cvar,
    "drawdown": _drawdown,
    "cost": lambda world, rollout: rollout.cost_BCH,
    "turnover": lambda world, rollout: rollout.turnover_BCH,
    "gross": lambda world, rollout: rollout.holdings_BCHN.abs().sum(-1),
    "net": lambda world, rollout: rollout.holdings_BCHN.sum(-1),
    "short": lambda world, rollout: rollout.holdings_BCHN.clamp(max=0).sum(-1).neg(),
    "cash": lambda world, rollout: 1 - rollout.holdings_BCHN.sum(-1),
    "beta": beta,
    "concentration": lambda world, rollout: rollout.holdings_BCHN.square().sum(-1),
    "hedge": lambda world, rollout: rollout.actions.hedge_X,
    "disagreement": _disagreement,
    "goal_distance": _goal_distance,
    "final_goal_distance": _final_goal_distance,
}
