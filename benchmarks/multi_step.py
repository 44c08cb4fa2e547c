"""Small markets on which the best decision for the next step is not the best decision, each with its exact multi-step optimum.

One risky asset and cash. Expected returns follow a Markov chain that everybody sees; a decision is a position, and a hedge where
the market has one. A step's reward is a utility, computed by the planners' own account (`planning.objective`), so that whatever
a planner can be asked for has an optimum here. Positions are kept as shares of wealth from step to step: drift is left out, as it
is by Garleanu and Pedersen (2013) and by the planner qp.

Where cash needs a flat asset to lie on there is a second asset, which hardly moves: what is put there is cash.

Shapes: Z market states, F signals, S states of the problem (market state, drawdown, hedge, position), A actions on a grid, B
rows, H decision steps, N = 2 assets, M = 3 with the market proxy.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import splu
from torch import Tensor

from finjepa_model.actions import DUST, PortfolioAction
from finjepa_model.config import PortfolioConfig
from finjepa_model.planning.imagination import Rollout, portfolio_variance
from finjepa_model.planning.objective import Objective, PlanningWorld
from finjepa_model.planning.utility import parse_utility
from finjepa_model.portfolio import Frictions, PortfolioSimulator, PortfolioState
from finjepa_pipeline.prices.synthetic import share_of_gain

DISCOUNT = 0.97  # of a decision step
BETA = 2.0  # of the asset to the market proxy, which is half of it
_STILL = 1e-4  # volatility of the second asset, for what divides by it
_LEVELS = 3  # of a signal
_STEP, _FINER = 0.025, 4  # of the grid of what is held, and how much finer that of what may be bought is
_NODES = 7  # of a Gaussian return, where drawdowns count


@dataclass(frozen=True)
class MultiStepMarket:
    """The chain, the rules of trading, and the utilities that it is asked for."""

    name: str
    mean_Z: np.ndarray  # expected simple return of the asset over a decision step
    variance_Z: np.ndarray
    chance_ZZ: np.ndarray  # from row to column
    signals_ZF: np.ndarray  # what is seen of a market state, of order one
    rules: PortfolioConfig
    utilities: tuple[str, ...]
    impact: float = 0.0  # trading a share x of wealth costs impact * x^2
    start: float = 0.0  # position that problems begin with
    drawdowns_D: np.ndarray = field(default_factory=lambda: np.zeros(1))  # grid; a single one where none counts

    @property
    def stationary_Z(self) -> np.ndarray:
        """Share of the steps that the chain spends in each state."""
        powers = np.linalg.matrix_power(self.chance_ZZ, 4096)
        return powers.mean(0) / powers.mean(0).sum()

    def imagined(self, z_B: np.ndarray, horizon: int) -> "TrueImagination":
        """The true moments of the next steps of markets in these states."""
        mean_HB, variance_HB, ahead_ZZ = [], [], np.eye(len(self.mean_Z))
        for _ in range(horizon):
            mean_Z = ahead_ZZ @ self.mean_Z
            variance_Z = ahead_ZZ @ (self.variance_Z + self.mean_Z**2) - mean_Z**2
            mean_HB.append(mean_Z[z_B])
            variance_HB.append(variance_Z[z_B])
            ahead_ZZ = ahead_ZZ @ self.chance_ZZ
        mean_BH, variance_BH = (torch.tensor(np.stack(x, axis=1)) for x in (mean_HB, variance_HB))
        loading_M = torch.tensor([1.0, 0.0, 1 / BETA], dtype=torch.float64)
        still_MM = torch.diag(torch.tensor([0.0, _STILL**2, 0.0], dtype=torch.float64))
        return TrueImagination(
            torch.stack([mean_BH, 0 * mean_BH], dim=-1),
            variance_BH[..., None, None] * loading_M[:, None] * loading_M + still_MM,
            torch.tensor([BETA, 0.0], dtype=torch.float64).expand(len(z_B), 2),
            torch.ones(len(z_B), 2, dtype=torch.bool),
            torch.tensor(self.signals_ZF[z_B]),
        )

    def portfolio(self, held_B: np.ndarray, hedged_B: np.ndarray, drawdown_B: np.ndarray) -> PortfolioState:
        """Portfolios of wealth 1."""
        positions_BN = torch.tensor(np.column_stack([held_B, 0 * held_B]))
        cash_B, hedge_B = 1 - positions_BN[:, 0], -torch.tensor(hedged_B * BETA * held_B.clip(min=0))
        start = PortfolioSimulator(self.rules).start((len(held_B), 2))
        return replace(
            start,
            positions_XN=positions_BN,
            cash_X=cash_B - hedge_B,
            hedge_X=hedge_B,
            signals_XN=positions_BN.sign(),
            hedged_X=torch.tensor(hedged_B),
            peak_X=torch.tensor(1 / (1 - drawdown_B)),
        )

    def world(self, imagined: "TrueImagination", portfolio: PortfolioState) -> PlanningWorld:
        """What planners and policies see; in the precision of the imagination."""
        world = PlanningWorld.of(imagined, PortfolioSimulator(self.rules), portfolio, sessions=1)
        return replace(world, frictions=QuadraticFrictions(**vars(world.frictions), quadratic=self.impact))


@dataclass(frozen=True)
class QuadraticFrictions(Frictions):
    """With the impact of Garleanu and Pedersen (2013): quadratic in what is traded."""

    quadratic: float = 0.0

    def trading(self, traded_XN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Frictions.trading`."""
        spread_X, impact_X, traded_X = super().trading(traded_XN)
        return spread_X, impact_X + self.quadratic * traded_XN.square().sum(-1), traded_X


@dataclass(frozen=True)
class TrueImagination:
    """The truth about B markets as an imagination (`planning.imagination.ImaginedMarket`), with the signals as latents."""

    mean_BHN: Tensor
    covariance_BHMM: Tensor
    beta_BN: Tensor
    present_BN: Tensor
    signals_BF: Tensor
    width: int = 8  # of the latents

    def to(self, dtype: torch.dtype) -> "TrueImagination":
        """In another precision."""
        return replace(self, **{n: x.to(dtype) for n, x in vars(self).items() if n not in ("present_BN", "width")})

    def take(self, some: Tensor) -> "TrueImagination":
        """Some of the markets, by their numbers; one may be taken more than once."""
        return replace(self, **{n: x[some] for n, x in vars(self).items() if n != "width"})

    @property
    def tokens_BMD(self) -> Tensor:
        """Latents of the asset, of cash and of the market: a mark of which of them it is, and the signals."""
        marks_BMM = torch.eye(3).to(self.signals_BF).expand(len(self.signals_BF), 3, 3)
        signals_BMF = self.signals_BF.unsqueeze(1).expand(-1, 3, -1)
        known_BMX = torch.cat([marks_BMM[..., :2], signals_BMF], dim=-1)
        return torch.nn.functional.pad(known_BMX, (0, self.width - known_BMX.shape[-1]))

    def volatility(self, holdings_BCN: Tensor, hedge_BC: Tensor) -> Tensor:
        """volatility_BC of portfolios over the next step."""
        variance_BC = portfolio_variance(holdings_BCN, hedge_BC, self.covariance_BHMM[:, 0])
        return variance_BC.clamp(min=1e-16).sqrt()

    def encode_portfolio(self, holdings_BCN: Tensor, scalars_BCG: Tensor) -> Tensor:
        """Portfolio latents_BCD: the position."""
        return torch.nn.functional.pad(holdings_BCN[..., :1], (0, self.width - 1))

    def portfolio_path(self, state: PortfolioState, planned: Rollout) -> Tensor:
        """Portfolio latents_BCHD after each step."""
        return torch.nn.functional.pad(planned.holdings_BCHN[..., :1], (0, self.width - 1))

    def position(self, latents_XD: Tensor) -> Tensor:
        """The same: all of a portfolio latent is the position."""
        return latents_XD


def actions_of(position_X: Tensor, hedge_X: Tensor) -> PortfolioAction:
    """The action that holds these shares of wealth in the asset."""
    size_X = position_X.abs()
    signals_XN = torch.stack([position_X.sign(), 0 * size_X], dim=-1)
    return PortfolioAction(torch.stack([size_X, 1 - size_X], dim=-1), signals_XN, hedge_X)


class MultiStepProblem:
    """A utility on a market: the discounted sum of rewards from the market's first position on, its state drawn from the
    stationary distribution of the chain.

    Values are exact but for grids of positions and drawdowns: what a policy holds counts as a mixture of the two points beside
    it. The same account serves the optimum and every policy, so none has more than the optimum but for the grid of actions.
    """

    def __init__(self, market: MultiStepMarket, utility: str):
        self.market, self.utility = market, parse_utility(utility)
        rules = market.rules
        low, steps = (-1.0, 2) if rules.allow_short else (0.0, 1)
        self.grid_X = np.linspace(low, 1.0, round(steps / _STEP) + 1)
        self._actions_X = np.linspace(low, 1.0, round(steps / _STEP) * _FINER + 1)
        hedges = np.array([0.0, 1.0]) if rules.allow_hedge else np.zeros(1)
        self._axes = (np.arange(len(market.mean_Z)), market.drawdowns_D, hedges, self.grid_X)
        self._shape = tuple(map(len, self._axes))
        index = np.unravel_index(np.arange(np.prod(self._shape)), self._shape)
        self.z_S, self.drawdown_S, self.hedged_S, self.held_S = (
            axis[i] for axis, i in zip(self._axes, index, strict=True)
        )

    def world(self, horizon: int = 1, dtype: torch.dtype = torch.float32) -> PlanningWorld:
        """Every state of the problem, as a batch."""
        imagined = self.market.imagined(self.z_S, horizon).to(dtype)
        return self.market.world(imagined, self.market.portfolio(self.held_S, self.hedged_S, self.drawdown_S))

    def rewards(self, actions: PortfolioAction) -> np.ndarray:
        """reward_SC of candidate actions in every state."""
        path = actions.map(lambda x: x.double().unsqueeze(2))
        return -Objective(self._world, self.utility)(path).numpy()

    def value_of(self, action: PortfolioAction) -> float:
        """Mean discounted reward a step of a policy: its action in every state."""
        position_S = action.positions(self.market.rules.allow_short)[:, 0].double()
        hedge_S = torch.where(position_S > DUST, action.hedge_X.double() * self.market.rules.allow_hedge, 0.0)
        return self._mean(self._values(position_S.numpy(), hedge_S.numpy()))

    @cached_property
    def optimum(self) -> tuple[float, PortfolioAction]:
        """Mean discounted reward a step of the best policy, and its action in every state, by policy iteration."""
        return self._improve(DISCOUNT)

    @cached_property
    def myopic(self) -> float:
        """Mean discounted reward a step of what is best for the next step alone."""
        return self._improve(0.0)[0]

    @cached_property
    def idle(self) -> float:
        """Mean discounted reward a step of who never trades."""
        return self._mean(self._values(self.held_S, self.hedged_S))

    def share(self, value: float) -> float:
        """The share of the optimal gain over never trading."""
        return share_of_gain(value, self.idle, self.optimum[0])

    def _improve(self, discount: float) -> tuple[float, PortfolioAction]:
        hedge_A, position_A = (x.ravel() for x in np.meshgrid(self._axes[2], self._actions_X, indexing="ij"))
        every = len(self.z_S), -1
        actions = actions_of(*(torch.tensor(x).expand(every) for x in (position_A, hedge_A)))
        reward_SA = self.rewards(actions)
        # what follows an action does not depend on what was held: rows (state of market, drawdown) x actions
        z_R, drawdown_R = (x.ravel() for x in np.meshgrid(*self._axes[:2], indexing="ij"))
        wide = [np.repeat(x, len(position_A)) for x in (z_R, drawdown_R)]
        tiled = [np.tile(x, len(z_R)) for x in (hedge_A, position_A)]
        moves = self.moves(*wide, *tiled)
        rows_S = np.repeat(np.arange(len(z_R)), len(self.z_S) // len(z_R))
        best_S, values_S = reward_SA.argmax(1), np.zeros(len(self.z_S))
        for _ in range(100):
            values_S = self._values(position_A[best_S], hedge_A[best_S])
            ahead_RA = (moves @ values_S).reshape(len(z_R), -1)
            value_SA = reward_SA + discount * ahead_RA[rows_S]
            better_S = value_SA.max(1) > value_SA[np.arange(len(best_S)), best_S] + 1e-12
            if not better_S.any():
                break
            best_S = np.where(better_S, value_SA.argmax(1), best_S)
        return self._mean(values_S), actions_of(torch.tensor(position_A[best_S]), torch.tensor(hedge_A[best_S]))

    def _values(self, position_S: np.ndarray, hedge_S: np.ndarray) -> np.ndarray:
        action = actions_of(torch.tensor(position_S)[:, None], torch.tensor(hedge_S)[:, None])
        moves = self.moves(self.z_S, self.drawdown_S, hedge_S, position_S)
        return splu(sp.eye(len(self.z_S), format="csc") - DISCOUNT * moves.tocsc()).solve(self.rewards(action)[:, 0])

    def _mean(self, values_S: np.ndarray) -> float:
        start = int(np.abs(self.grid_X - self.market.start).argmin())
        start_Z = values_S.reshape(self._shape)[:, 0, 0, start]
        return float((1 - DISCOUNT) * (self.market.stationary_Z @ start_Z))

    def moves(
        self, z_R: np.ndarray, drawdown_R: np.ndarray, hedge_R: np.ndarray, position_R: np.ndarray
    ) -> sp.csr_matrix:
        """Probabilities of the next state, [R, S], of rows (market state, drawdown, hedge, position after the trade)."""
        low_R, share_R = _between(self.grid_X, position_R)
        hedged_R = (hedge_R > 0.5).astype(int)
        exposure_R = position_R - hedge_R * position_R.clip(min=0)
        nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES if len(self.market.drawdowns_D) > 1 else 1)
        rows, columns, chances = [], [], []
        for node, weight in zip(nodes, weights / weights.sum(), strict=True):
            return_R = self.market.mean_Z[z_R] + node * np.sqrt(self.market.variance_Z[z_R])
            below_R = 1 - np.minimum((1 - drawdown_R) * (1 + exposure_R * return_R), 1)
            deep_R, deeper_R = _between(self.market.drawdowns_D, below_R)
            for z in self._axes[0]:
                for d, chance_d in ((deep_R, 1 - deeper_R), (deep_R + 1, deeper_R)):
                    for x, chance_x in ((low_R, 1 - share_R), (low_R + 1, share_R)):
                        chance_R = weight * self.market.chance_ZZ[z_R, z] * chance_d * chance_x
                        some = np.flatnonzero(chance_R)
                        at = (np.full(len(some), z), d[some], hedged_R[some], x[some])
                        rows.append(some)
                        columns.append(np.ravel_multi_index(at, self._shape))
                        chances.append(chance_R[some])
        where = np.concatenate(rows), np.concatenate(columns)
        return sp.csr_matrix((np.concatenate(chances), where), shape=(len(z_R), len(self.z_S)))

    @cached_property
    def _world(self) -> PlanningWorld:
        return self.world(dtype=torch.float64)


def _between(grid: np.ndarray, value_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The point of an ascending grid at or below each value, and how far it is on its way to the next one."""
    if len(grid) == 1:
        return np.zeros(len(value_R), int), np.zeros(len(value_R))
    value_R = value_R.clip(grid[0], grid[-1])
    low_R = np.searchsorted(grid, value_R, side="right").clip(1, len(grid) - 1) - 1
    return low_R, (value_R - grid[low_R]) / (grid[low_R + 1] - grid[low_R])


def garleanu_pedersen(
    aversion: float, impact: float, persistence_F: np.ndarray, discount: float = DISCOUNT
) -> tuple[float, np.ndarray]:
    """The best position is rate * (what is held) + weight'(expected returns by signal): the closed form of Garleanu and Pedersen
    (2013) for one asset with reward mean x - aversion/2 x^2 - impact (x - held)^2, where no limit binds.

    Args:
        aversion: risk aversion times the variance of the asset.
        persistence_F: of each signal's part of the expected return in a step.

    Returns:
        rate and weight_F.
    """
    price, curvature = 2 * impact, 0.0
    for _ in range(10_000):  # a contraction
        curvature = price - price**2 / (aversion + price + discount * curvature)
    slope = aversion + price + discount * curvature
    ahead_F = price / (slope - price * discount * persistence_F)
    return price / slope, (1 + discount * persistence_F * ahead_F) / slope


def _signal(persistence: float) -> tuple[np.ndarray, np.ndarray]:
    """Levels of unit variance and a chain between them whose expectation is `persistence` times the level (Rouwenhorst 1995)."""
    stay = (1 + persistence) / 2
    chance = np.array([[stay, 1 - stay], [1 - stay, stay]])
    for size in range(3, _LEVELS + 1):
        wider = np.zeros((size, size))
        for (row, column), share in (((0, 0), stay), ((0, 1), 1 - stay), ((1, 0), 1 - stay), ((1, 1), stay)):
            wider[row : row + size - 1, column : column + size - 1] += share * chance
        wider[1:-1] /= 2
        chance = wider
    return np.linspace(-1, 1, _LEVELS) * np.sqrt(_LEVELS - 1), chance


_FREE = PortfolioConfig(cost_bps=0.0, hedge_cost_bps=0.0, borrow_rate=0.0, margin_spread=0.0, allow_hedge=False)


def _two_signals(random: np.random.Generator, name: str, rules: PortfolioConfig, impact: float) -> MultiStepMarket:
    """A signal that fades at once and one that stays predict the same return."""
    (fast_L, fast_LL), (slow_L, slow_LL) = _signal(random.uniform(0.1, 0.4)), _signal(random.uniform(0.9, 0.96))
    fast_Z, slow_Z = np.repeat(fast_L, _LEVELS), np.tile(slow_L, _LEVELS)
    strength = random.uniform(0.0036, 0.0048, 2)
    return MultiStepMarket(
        name,
        strength[0] * fast_Z + strength[1] * slow_Z,
        np.full(_LEVELS**2, 0.045**2),
        np.kron(fast_LL, slow_LL),
        np.column_stack([fast_Z, slow_Z]),
        replace(rules, allow_short=True),
        tuple(f"log_growth - {price:g}*variance" for price in (6, 9, 14)),
        impact,
    )


def quadratic_costs(seed: int) -> MultiStepMarket:
    """Two signals of different persistence, and costs quadratic in the trade: Garleanu and Pedersen (2013)."""
    random = np.random.default_rng([seed, 1])
    return _two_signals(random, "quadratic costs", _FREE, random.uniform(0.12, 0.2))


def proportional_costs(seed: int) -> MultiStepMarket:
    """The same signals with costs proportional to the trade."""
    random = np.random.default_rng([seed, 2])
    rules = replace(_FREE, cost_bps=random.uniform(75, 120))
    return _two_signals(random, "proportional costs", rules, 0.0)


def slow_regime(seed: int) -> MultiStepMarket:
    """A dip and a slump expect the same fall in the next step, but the dip is over soon; who leaves pays to come back."""
    random = np.random.default_rng([seed, 3])
    gain, fall = random.uniform(0.004, 0.006), random.uniform(0.008, 0.012)
    chance_ZZ = np.array([[0.93, 0.05, 0.02], [0.7, 0.3, 0.0], [0.05, 0.0, 0.95]])
    return MultiStepMarket(
        "slow regime",
        np.array([gain, -fall, -fall]),
        np.full(3, 0.03**2),
        chance_ZZ,
        np.eye(3),
        replace(_FREE, cost_bps=random.uniform(120, 180)),
        ("log_growth - 0.5*variance", "log_growth - 1.5*variance", "log_growth - variance - 0.003*turnover"),
    )


def drawdown_limit(seed: int) -> MultiStepMarket:
    """Drawdowns beyond a limit are charged as long as they last, and last until the risk is taken that ends them."""
    random = np.random.default_rng([seed, 4])
    gain, stay = random.uniform(0.008, 0.012), random.uniform(0.85, 0.95)
    return MultiStepMarket(
        "drawdown limit",
        np.array([gain, gain / 4]),
        np.full(2, 0.04**2),
        np.array([[stay, 1 - stay], [1 - stay, stay]]),
        np.eye(2),
        replace(_FREE, cost_bps=10.0),
        tuple(
            f"log_growth - {price}*above(drawdown, {limit})" for price, limit in ((0.2, 0.1), (0.3, 0.1), (0.3, 0.15))
        ),
        drawdowns_D=np.linspace(0.0, 0.4, 21),
    )


def crash_season(seed: int) -> MultiStepMarket:
    """A hedge whose fee is more than it saves in a step, and less than it saves over a season of crashes."""
    random = np.random.default_rng([seed, 5])
    gain, fall = random.uniform(0.006, 0.008), random.uniform(0.008, 0.012)
    chance_ZZ = np.array([[0.9, 0.06, 0.04], [0.7, 0.3, 0.0], [0.1, 0.0, 0.9]])
    return MultiStepMarket(
        "crash season",
        np.array([gain, -fall, -fall]),
        np.full(3, 0.03**2),
        chance_ZZ,
        np.eye(3),
        replace(_FREE, cost_bps=400.0, hedge_cost_bps=random.uniform(65, 85), allow_hedge=True),
        ("log_growth - 0.5*variance", "log_growth - 1.5*variance", "log_growth - variance - 0.001*hedge"),
        start=1.0,
    )


MULTI_STEP_MARKETS: dict[str, Callable[[int], MultiStepMarket]] = {
    "quadratic costs": quadratic_costs,
    "proportional costs": proportional_costs,
    "slow regime": slow_regime,
    "drawdown limit": drawdown_limit,
    "crash season": crash_season,
}
