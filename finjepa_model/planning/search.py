"""Search: CEM, MPPI and random shooting over mixed actions by one loop of sampling, and projected gradients.

Weights are independent Gaussians in R^N that are projected onto the simplex when they are decoded, and the raw numbers are
fitted; unlike a softmax or a Dirichlet this reaches exact zeros and shrinks without bias (measured gaps to the optimum, 30
assets and 5 steps: .0050, softmax .0488, Dirichlet .0834). Signals are categorical and the hedge is Bernoulli. The same noise
serves every date, so a date's plan does not depend on the dates that are planned together with it.

Shapes: B decision dates, C candidates, E elites, H decision steps, N assets.
"""

import contextlib
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.objective import Objective
from finjepa_model.planning.plan import (
    ActionSpace,
    Cost,
    Plan,
    Record,
    action_of_positions,
    effective_samples,
    project_to_exposure,
    tie,
)
from finjepa_model.planning.qp import simple_plans

# How the distribution starts, and how fast it may move
_INITIAL_STD = 0.3  # of raw weights
_INITIAL_FLAT = 0.2  # probability of a flat signal; long, and short where it is allowed, share the rest
_WARM_STD = 0.15  # of raw weights around a plan that is carried over
_WARM_TRUST = 0.8  # probability of each signal and hedge of a plan that is carried over
_MIN_STD = 1e-4
_SMOOTHING = 0.01  # Laplace smoothing of probabilities, so that no choice ever dies out
_REFINEMENTS = 8
_STEPS = (0.2, 0.07, 0.02, 0.007, 0.002, 0.0005)  # of the weight that moves most
_EXCHANGES, _MOVED = 40, 16  # at most; assets from each end of the slopes
_MOVES = (0.3, 0.1, 0.03, 0.01)  # shares of wealth
_MOMENTUM = 0.1  # share of the old distribution that is kept in a fit


@dataclass(frozen=True)
class Samples:
    """Candidates: raw_BCHN as drawn, and the actions that they decode to."""

    raw_BCHN: Tensor
    actions: PortfolioAction

    def take(self, index_BE: Tensor) -> "Samples":
        """Candidates by number, on each date its own."""
        dates_B1 = torch.arange(index_BE.shape[0], device=index_BE.device).unsqueeze(-1)
        return Samples(self.raw_BCHN[dates_B1, index_BE], self.actions.map(lambda x: x[dates_B1, index_BE]))


@dataclass(frozen=True)
class Proposal:
    """Independent Gaussians, categoricals and Bernoullis."""

    space: ActionSpace
    mean_BHN: Tensor  # of raw weights
    std_BHN: Tensor
    short_BHN: Tensor  # probability of the signal -1
    long_BHN: Tensor  # of 1; flat has the rest
    hedge_BH: Tensor  # probability that the hedge is on

    @classmethod
    def start(cls, space: ActionSpace, centre: PortfolioAction | None) -> "Proposal":
        """Around a path, or else around 1/N, mostly invested, hedged half the time."""
        mean_BHN = space.equal_weights()
        if centre is None:
            ones_BHN = torch.ones_like(mean_BHN)
            long = (1 - _INITIAL_FLAT) / (2 if space.allow_short else 1)
            short = long if space.allow_short else 0.0
            hedge_BH = torch.full_like(mean_BHN[..., 0], 0.5 if space.allow_hedge else 0.0)
            std_BHN = ones_BHN * _INITIAL_STD
            return cls(space, mean_BHN, std_BHN, ones_BHN * short, ones_BHN * long, hedge_BH)

        def around(chosen_X: Tensor, others: int) -> Tensor:
            return torch.where(chosen_X, _WARM_TRUST, (1 - _WARM_TRUST) / others)

        others = 2 if space.allow_short else 1
        short_BHN = around(centre.signals_XN < 0, others) * float(space.allow_short)
        hedge_BH = around(centre.hedge_X > 0.5, 1) * float(space.allow_hedge)
        std_BHN = torch.full_like(centre.weights_XN, _WARM_STD)
        return cls(space, centre.weights_XN, std_BHN, short_BHN, around(centre.signals_XN > 0, others), hedge_BH)

    def sample(self, count: int, generator: torch.Generator | None) -> Samples:
        """Draw `count` candidates for each date; number 0 is the mean of the weights and the mode of the rest, number 1
        holds nothing, so that the cost of doing nothing is always known and one candidate keeps every limit on exposure.

        Signals are drawn by inverting their distribution: the same law as the Gumbel-max trick from one uniform number instead
        of three Gumbel ones, which is 15 times less random-number work.
        """
        shape = (count, *self.mean_BHN.shape[1:])
        options = {"generator": generator, "dtype": self.mean_BHN.dtype, "device": self.mean_BHN.device}
        noise_CHN, dice_CHN = torch.randn(shape, **options), torch.rand(shape, **options)
        coin_CH = torch.rand(shape[:-1], **options)
        noise_CHN[0] = 0
        raw_BCHN = self.mean_BHN.unsqueeze(1) + self.std_BHN.unsqueeze(1) * noise_CHN
        is_short_BCHN = dice_CHN < self.short_BHN.unsqueeze(1)
        is_long_BCHN = dice_CHN >= 1 - self.long_BHN.unsqueeze(1)
        signals_BCHN = is_long_BCHN.to(raw_BCHN.dtype) - is_short_BCHN.to(raw_BCHN.dtype)
        hedge_BCH = (coin_CH < self.hedge_BH.unsqueeze(1)).to(raw_BCHN.dtype)
        flat_BHN = 1 - self.short_BHN - self.long_BHN
        long_BHN = (self.long_BHN >= flat_BHN) & (self.long_BHN >= self.short_BHN)
        short_BHN = (self.short_BHN > flat_BHN) & ~long_BHN
        signals_BCHN[:, 0] = long_BHN.to(raw_BCHN.dtype) - short_BHN.to(raw_BCHN.dtype)
        hedge_BCH[:, 0] = (self.hedge_BH > 0.5).to(raw_BCHN.dtype)
        signals_BCHN[:, 1:2], hedge_BCH[:, 1:2] = 0, 0
        return Samples(raw_BCHN, PortfolioAction(self.space.project(raw_BCHN), signals_BCHN, hedge_BCH))

    def fit(self, samples: Samples, weights_BE: Tensor) -> "Proposal":
        """Move towards weighted samples; the weights sum to 1 on each date, or to 0 where no candidate has a finite cost."""
        space = self.space
        signals_BEHN = samples.actions.signals_XN
        weights_BE11 = weights_BE[..., None, None]
        mean_BHN = (weights_BE11 * samples.raw_BCHN).sum(1)
        variance_BHN = (weights_BE11 * (samples.raw_BCHN - mean_BHN.unsqueeze(1)).square()).sum(1)
        choices = 3 if space.allow_short else 2

        def smooth(probability_X: Tensor, choices: int) -> Tensor:
            return (probability_X + _SMOOTHING) / (1 + choices * _SMOOTHING)

        long_BHN = smooth((weights_BE11 * (signals_BEHN > 0)).sum(1), choices)
        short_BHN = smooth((weights_BE11 * (signals_BEHN < 0)).sum(1), choices) * float(space.allow_short)
        hedge_BH = smooth((weights_BE.unsqueeze(-1) * samples.actions.hedge_X).sum(1), 2) * float(space.allow_hedge)
        pace_B = (1 - _MOMENTUM) * (weights_BE.sum(-1) > 0).to(mean_BHN.dtype)
        pace_B1, pace_B11 = pace_B[:, None], pace_B[:, None, None]
        return Proposal(
            space,
            self.mean_BHN.lerp(mean_BHN, pace_B11),
            self.std_BHN.lerp(variance_BHN.sqrt(), pace_B11).clamp(min=_MIN_STD),
            self.short_BHN.lerp(short_BHN, pace_B11),
            self.long_BHN.lerp(long_BHN, pace_B11),
            self.hedge_BH.lerp(hedge_BH, pace_B1),
        )


def begin(record: Record, cost: Cost, space: ActionSpace, warm_start: Plan | None) -> PortfolioAction | None:
    """Put on record what is known before a search, `simple_plans` and the plan of the decision before; the cheapest, refined.

    Raises:
        FinJEPAError: if the plan of before is one of other dates, steps or assets.
    """
    known = []
    if isinstance(cost, Objective):
        with contextlib.suppress(FinJEPAError):  # of a utility whose numbers are too far apart to be solved
            known.append(simple_plans(cost, space))
    if warm_start is not None:
        if warm_start.path.weights_XN.shape != space.equal_weights().shape:
            raise FinJEPAError("the plan to start from has other dates, steps or assets; start without it")
        known.append(warm_start.shifted().map(lambda x: x.unsqueeze(1)))
    for candidates in known:
        record.evaluate(candidates)
    if isinstance(cost, Objective) and known:
        polish(record, cost, space)
        record.settle()
    return record.path


def polish(record: Record, cost: Cost, space: ActionSpace) -> None:
    """Improve the best plan without chance: by exchanges, which can turn signals and the hedge, then by slopes of the weights."""
    exchange(record, cost, space)
    refine(record, cost, space)


@torch.no_grad()
def exchange(record: Record, cost: Cost, space: ActionSpace) -> None:
    """Move one asset of the best plan at a time, in all steps alike, through zero if that pays, or turn the hedge; the best of
    these moves is made, as long as one pays by a tenth of a tie.

    Where there are many assets, those of the largest and of the smallest slope of the cost are moved. A limit that only some
    signs keep (`short >= 0.2`), least sizes and drawdown are beyond slopes and beyond a hundred random draws, not beyond this:
    before it two seeds differed by up to all wealth there, and the plans were worse (docs/results/decisions.md).
    """
    assets = space.present_BN.shape[1]
    by_S11 = torch.tensor([sign * size for size in _MOVES for sign in (1, -1)])[:, None, None]
    for _ in range(_EXCHANGES):
        path, before_B = record.path, record.cost_B
        assert path is not None
        order_BN = torch.arange(assets).expand(len(before_B), -1)
        if assets > 2 * _MOVED:
            order_BN = _position_slope(cost, path).masked_fill(~space.present_BN, 0.0).argsort(-1)
        moved_BA = torch.cat([order_BN[:, :_MOVED], order_BN[:, _MOVED:][:, -_MOVED:]], -1)
        unit_BAN = F.one_hot(moved_BA, assets).to(path.weights_XN)
        held_B1HN, hedge_B1H = (path.weights_XN * path.signals_XN).unsqueeze(1), path.hedge_X.unsqueeze(1)
        moved_BCHN = held_B1HN + (by_S11.to(unit_BAN) * unit_BAN.unsqueeze(1)).flatten(1, 2).unsqueeze(2)
        hedges = hedge_B1H.expand(-1, moved_BCHN.shape[1], -1)
        if space.allow_hedge:
            moved_BCHN, hedges = torch.cat([moved_BCHN, held_B1HN], 1), torch.cat([hedges, 1 - hedge_B1H], 1)
        record.evaluate(_actions_of(moved_BCHN, hedges, space))
        if (before_B - record.cost_B <= 0.1 * tie(record.cost_B)).all():
            return


def _actions_of(x_BCHN: Tensor, hedge_BCH: Tensor, space: ActionSpace) -> PortfolioAction:
    """The actions whose positions are the nearest allowed ones."""
    dates, candidates = x_BCHN.shape[:2]
    wide = replace(space, present_BN=space.present_BN.repeat_interleave(candidates, 0))
    action = action_of_positions(project_to_exposure(x_BCHN.flatten(0, 1), wide), wide, hedge=0.0)
    weights_BCHN, signals_BCHN = (
        x[:, 0].unflatten(0, (dates, candidates)) for x in (action.weights_XN, action.signals_XN)
    )
    return PortfolioAction(weights_BCHN, signals_BCHN, hedge_BCH)


def _position_slope(cost: Cost, path: PortfolioAction) -> Tensor:
    """Slope of the cost in the signed share of each asset, summed over the steps: slope_BN."""
    parts = [x.unsqueeze(1) for x in (path.weights_XN, path.signals_XN, path.hedge_X)]
    by_weight_B1HN, by_signal_B1HN = _slopes(cost, parts, moving=2)
    weights_B1HN, signals_B1HN, _ = parts
    flat_B1HN = torch.where(weights_B1HN > 1e-9, by_signal_B1HN / weights_B1HN.clamp(min=1e-9), 0.0)
    return torch.where(signals_B1HN != 0, by_weight_B1HN * signals_B1HN, flat_B1HN).sum((1, 2))


def refine(record: Record, cost: Cost, space: ActionSpace) -> None:
    """Move the weights of the best plan along the projected slope of its cost, as long as that is cheaper."""
    for _ in range(_REFINEMENTS):
        path, before_B = record.path, record.cost_B
        assert path is not None
        parts = [x.unsqueeze(1) for x in (path.weights_XN, path.signals_XN, path.hedge_X)]
        slope_BCHN = space.tangent(_slopes(cost, parts, moving=1)[0])
        unit_BCHN = slope_BCHN / slope_BCHN.abs().amax((-1, -2), keepdim=True).clamp(min=1e-12)
        steps_C = torch.tensor(_STEPS).to(unit_BCHN)[:, None, None]
        weights_BCHN = space.project(parts[0] - steps_C * unit_BCHN)
        others = [x.expand(x.shape[0], len(_STEPS), *x.shape[2:]) for x in parts[1:]]
        record.evaluate(PortfolioAction(weights_BCHN, *others))
        if torch.equal(record.cost_B, before_B):
            return


# The candidates that a fit follows: their numbers index_BE, None for all, and their weights_BE.
Choice = tuple[Tensor | None, Tensor]


@dataclass(frozen=True, kw_only=True)
class SamplingPlanner:
    """Draw candidates, choose among them by cost, fit the distribution to the chosen ones, repeat."""

    samples: int = 128
    iterations: int = 10
    informed: ClassVar[bool] = True  # of `simple_plans` and of slopes

    def choose(self, cost_BC: Tensor) -> Choice | None:
        """What the next distribution is fitted to; None where it stays."""
        raise NotImplementedError

    @torch.no_grad()
    def plan(
        self, cost: Cost, space: ActionSpace, warm_start: Plan | None = None, generator: torch.Generator | None = None
    ) -> Plan:
        """See `Planner.plan`. The plan is the best candidate that was seen, not the mean that the distribution ends at."""
        record = Record(cost)
        proposal = Proposal.start(space, begin(record, cost, space, warm_start) if self.informed else None)
        for _ in range(self.iterations):
            samples = proposal.sample(self.samples, generator)
            chosen = self.choose(record.evaluate(samples.actions))
            if chosen is None:
                record.follow(torch.full_like(samples.actions.hedge_X[..., 0], 1 / self.samples))
                continue
            index_BE, weights_BE = chosen
            record.follow(weights_BE)
            proposal = proposal.fit(samples if index_BE is None else samples.take(index_BE), weights_BE)
        if self.informed:
            polish(record, cost, space)
        return record.plan()


class RandomPlanner(SamplingPlanner):
    """As many candidates as CEM and MPPI draw, all from around 1/N; the best one is kept. A control: it knows nothing else."""

    informed = False

    def choose(self, cost_BC: Tensor) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class CEMPlanner(SamplingPlanner):
    """Draw candidates, keep the elites, fit the distribution to them, repeat (Rubinstein 1999; JEPA-WMs, section 4).

    Differs from the CEM of the JEPA code bases where they lose: sample 0 is the mean, the standard deviation is the
    population's (one elite gives 0, not NaN), plans are warm-started, and what is returned is the best candidate seen.
    """

    elites: int = 16

    def choose(self, cost_BC: Tensor) -> Choice:
        """The cheapest candidates, with equal weights for those of finite cost."""
        elite = cost_BC.topk(min(self.elites, cost_BC.shape[1]), largest=False)
        finite_BE = elite.values.isfinite().to(cost_BC.dtype)
        return elite.indices, finite_BE / finite_BE.sum(-1, keepdim=True).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class MPPIPlanner(SamplingPlanner):
    """Weigh all candidates by exp(-cost / temperature) and fit the distribution to them, noise included.

    With a fixed noise the search stays as coarse as it started; here the noise is refitted. The temperature starts from
    the configured one and moves, on each date by itself, as far as the effective sample size needs to stay in its band.
    """

    temperature: float = 0.2  # of costs in units of their median distance to the lowest; lower is greedier
    effective_band: tuple[float, float] = (0.05, 0.3)  # of effective over drawn samples; moves the temperature if left

    def choose(self, cost_BC: Tensor) -> Choice:
        """All, with weights at the temperature nearest to the configured one that keeps the effective sample size in its band.

        The effective sample size grows with the temperature, so a grid of factors 1.25 apart finds it in one sweep.
        """
        cost_BC = normalise_costs(cost_BC)
        steps_K = torch.arange(-24, 25, dtype=cost_BC.dtype, device=cost_BC.device)
        temperatures_K = self.temperature * 1.25**steps_K
        ratio_BK = effective_samples(mppi_weights(cost_BC.unsqueeze(1), temperatures_K[:, None])) / cost_BC.shape[1]
        low, high = self.effective_band
        outside_BK = (low - ratio_BK).clamp(min=0) + (ratio_BK - high).clamp(min=0)
        chosen_B = (outside_BK + 1e-6 * steps_K.abs()).argmin(-1)
        return None, mppi_weights(cost_BC, temperatures_K[chosen_B].unsqueeze(-1))


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


_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True, kw_only=True)
class GradientPlanner:
    """Follows the slope of the cost from several starts at once: weights are projected onto the simplex after every step,
    signals and the hedge are relaxed to intervals and rounded in the end.

    Only actions that can be traded are ever a plan: what is relaxed is rounded before it is put on record.
    """

    starts: int = 8
    iterations: int = 40
    relaxed_share: float = 0.6  # of the iterations; then signals and hedge are rounded, and weights are refined alone
    weight_rate: float = 0.2  # Adam's step, a share of wealth; it falls to a tenth
    signal_rate: float = 0.4

    def plan(
        self, cost: Cost, space: ActionSpace, warm_start: Plan | None = None, generator: torch.Generator | None = None
    ) -> Plan:
        """See `Planner.plan`."""
        record = Record(cost)
        starts = Proposal.start(space, begin(record, cost, space, warm_start)).sample(self.starts, generator).actions
        low = -1.0 if space.allow_short else 0.0
        parts = [starts.weights_XN, starts.signals_XN, starts.hedge_X]
        first = [torch.zeros_like(part) for part in parts]
        second = [torch.zeros_like(part) for part in parts]
        relaxed = round(self.relaxed_share * self.iterations)
        for iteration in range(self.iterations):
            with torch.no_grad():
                record.evaluate(_rounded(parts))
            if iteration == relaxed:
                positions = parts[0] * parts[1].abs()
                parts = [space.project(positions), parts[1].round(), parts[2].round()]
            moving = 3 if iteration < relaxed else 1
            slopes = _slopes(cost, parts, moving)
            pace = 0.1 ** (iteration / self.iterations)
            # Weights move along the simplex, and at one pace: a pace for each would bend the direction, and what weights have
            # in common would set it and be projected away.
            slopes = (space.tangent(slopes[0]), *slopes[1:])
            for i, slope in enumerate(slopes):
                first[i] = first[i].lerp(slope, 1 - _BETAS[0])
                square = slope.square().mean(-1, keepdim=True) if i == 0 else slope.square()
                second[i] = second[i].lerp(square, 1 - _BETAS[1])
                mean = first[i] / (1 - _BETAS[0] ** (iteration + 1))
                root = (second[i] / (1 - _BETAS[1] ** (iteration + 1))).sqrt()
                rate = pace * (self.weight_rate if i == 0 else self.signal_rate)
                parts[i] = parts[i] - rate * mean / (root + _EPSILON)
            parts[0] = space.project(parts[0])
            parts[1] = parts[1].clamp(low, 1.0)
            parts[2] = parts[2].clamp(0.0, 1.0) * float(space.allow_hedge)
        with torch.no_grad():
            record.evaluate(_rounded(parts))
            polish(record, cost, space)
            return record.plan()


def _slopes(cost: Cost, parts: list[Tensor], moving: int) -> tuple[Tensor, ...]:
    """Of the cost in the first `moving` of weights, signals and hedge; 0 where it is not a number."""
    leaves = [part.detach().requires_grad_(i < moving) for i, part in enumerate(parts)]
    with torch.enable_grad():
        cost_BC = cost(PortfolioAction(*leaves))
        finite_BC = torch.where(cost_BC.isfinite(), cost_BC, 0.0)
        total = finite_BC.sum() + 0 * leaves[0].sum()  # a cost may not depend on what moves
        slopes = torch.autograd.grad(total, leaves[:moving], allow_unused=True)
    pairs = zip(slopes, leaves, strict=False)
    return tuple(torch.zeros_like(leaf) if slope is None else slope.nan_to_num(0, 0, 0) for slope, leaf in pairs)


def _rounded(parts: list[Tensor]) -> PortfolioAction:
    """The nearest action that can be traded."""
    weights_BCHN, signals_BCHN, hedge_BCH = parts
    return PortfolioAction(weights_BCHN, signals_BCHN.round(), hedge_BCH.round())
