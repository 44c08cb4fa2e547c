"""Why a decision is what it is: the terms of its cost, how the plan was found, the past closes that were most like today,
and the forecast path with how such forecasts have come out so far.

Shapes: B past decision dates, N assets of the view, H decision steps, D latent width, T sessions of a decision step, I
iterations.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finjepa_model.data.batches import Observation
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import checkpoint_splits, history_needed
from finjepa_model.errors import FinJEPAError
from finjepa_model.market_view import MarketView
from finjepa_model.planner_strategies import Expectation, MarketImagination
from finjepa_model.planning.imagination import Moments
from finjepa_model.planning.plan import Plan

PAST_DATES = 160  # that are looked at: enough for a spread of regimes, little work
NEIGHBOURS = 5
MIN_CALIBRATION = 20  # forecasts; fewer say nothing
_BATCH = 16


@dataclass(frozen=True)
class Search:
    """One decision's search, by iteration. A planner that solves has its candidate solutions in place of iterations.

    Attributes:
        cost: lowest seen so far; lower is better.
        weights: of the first step, by asset: where the search stood.
        effective: effective number of candidates that the next iteration was fitted to; empty where nothing is sampled.
    """

    cost: tuple[float, ...]
    weights: dict[str, tuple[float, ...]]
    effective: tuple[float, ...]

    @classmethod
    def of(cls, plan: Plan, assets: tuple[str, ...]) -> "Search":
        """Of a plan of one date."""
        weights = {name: tuple(plan.weights_IBN[:, 0, i].tolist()) for i, name in enumerate(assets)}
        return cls(tuple(plan.cost_IB[:, 0].tolist()), weights, tuple(plan.effective_samples_IB[:, 0].tolist()))


@dataclass(frozen=True)
class Regime:
    """A past close at which the market's latent was like today's; what the market did in the decision step after it."""

    date: str
    similarity: float  # cosine, of latents whose mean over the past is taken off
    market_return: float  # simple return of the market proxy over the decision step that followed


@dataclass(frozen=True)
class Calibration:
    """How the forecast spread of an equally weighted portfolio came out on past dates that no training has seen.

    Attributes:
        within: share of outcomes within one forecast standard deviation of the forecast; 0.68 is right.
        ratio: realised standard deviation of the standardised outcomes; 1 is right, above it risk was underestimated.
    """

    predictions: int
    within: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Reasons:
    """`terms`: cost by term, lower is better; `path`: forecast (log growth, volatility) of each decision step ahead."""

    terms: dict[str, float]
    path: tuple[tuple[float, float], ...]
    step_sessions: int
    regimes: tuple[Regime, ...] = ()
    calibration: Calibration = Calibration(0)


@torch.no_grad()
def reasons_for(
    panel: Panel, session: int, assets_N: np.ndarray, imagination: MarketImagination, expected: Expectation
) -> Reasons:
    """Look back from a decision on these assets; nothing after `session` is read."""
    config = imagination.model.config
    stride, history = config.model.stride, history_needed(config)
    # what followed must be over by now: fill at the next close, then a step of `stride` sessions
    sessions_B = np.arange(session - stride - 1, history, -stride)[::-1]
    sessions_B = sessions_B[np.linspace(0, max(len(sessions_B) - 1, 0), min(PAST_DATES, len(sessions_B))).astype(int)]
    past = [(s, MarketView(panel, s, assets_N, history)) for s in sessions_B.tolist()]
    past = [(s, view) for s, view in past if view.present_N.any()]
    if not past:
        return Reasons(expected.terms, expected.path, stride)
    views = [view for _, view in past]
    latents_BD, mean_B, spread_B = _look(imagination, [*views, MarketView(panel, session, assets_N, history)])
    followed = [_compound(panel.market_returns[s + 2 : s + 2 + stride]) for s, _ in past]
    latents_BD = latents_BD - latents_BD[:-1].mean(0)
    similarity_B = torch.cosine_similarity(latents_BD[:-1], latents_BD[-1:], dim=1)
    nearest = similarity_B.argsort(descending=True)[:NEIGHBOURS].tolist()
    regimes = tuple(Regime(str(views[b].date), float(similarity_B[b]), followed[b]) for b in nearest)
    unseen = _unseen_from(imagination, panel)
    judged = [b for b, (s, _) in enumerate(past) if s >= unseen and spread_B[b] > 0]
    z = np.array([(_outcome(panel, *past[b], stride) - float(mean_B[b])) / float(spread_B[b]) for b in judged])
    calibration = Calibration(len(z))
    if len(z) >= MIN_CALIBRATION:
        calibration = Calibration(len(z), float((np.abs(z) <= 1).mean()), float(np.sqrt((z**2).mean())))
    return Reasons(expected.terms, expected.path, stride, regimes, calibration)


def _unseen_from(imagination: MarketImagination, panel: Panel) -> int:
    """The first session after those that the model was trained on; the panel's end where that is not known."""
    try:
        return checkpoint_splits(imagination.folder, panel).validation[0]
    except FinJEPAError:
        return len(panel.dates)


def _look(imagination: MarketImagination, views: list[MarketView]) -> tuple[Tensor, Tensor, Tensor]:
    """Market latents [B, D] at the close, and forecast mean and volatility [B] of an equally weighted portfolio of what is
    present."""
    model, found = imagination.model, []
    for start in range(0, len(views), _BATCH):
        batch = [view.observation(model.config) for view in views[start : start + _BATCH]]
        observation = Observation.concatenate(batch)
        _, market_BSD = model.encode(observation)
        moments = Moments.of(model.imagine(observation, 1))
        weights_BN = moments.present_BN / moments.present_BN.sum(-1, keepdim=True).clamp(min=1)
        mean_B = (weights_BN * moments.mean_BHN[:, 0]).sum(-1)
        spread_B = moments.variance(weights_BN.unsqueeze(1)).squeeze(1).clamp(min=0).sqrt()
        found.append((market_BSD[:, -1], mean_B, spread_B))
    latents_BD, mean_B, spread_B = (torch.cat(parts) for parts in zip(*found, strict=True))
    return latents_BD, mean_B, spread_B


def _outcome(panel: Panel, session: int, view: MarketView, stride: int) -> float:
    """Return of an equally weighted portfolio of what was present, from the fill over a decision step."""
    returns_1NT, _ = panel.returns_after(np.array([session + 1]), view.asset_indices[None], stride)
    return float(np.mean([_compound(row) for row in returns_1NT[0][view.present_N]]))


def _compound(returns_T: np.ndarray) -> float:
    return float(np.prod(1 + returns_T.astype(np.float64)) - 1)
