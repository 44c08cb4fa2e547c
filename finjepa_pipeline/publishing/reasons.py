"""Why a decision is what it is: the terms of its cost, the past that the market of today resembles, and the predicted path with
how such predictions have come out so far.

Shapes: B past decision dates, N assets of the view, H decision steps, D latent width, T sessions of a decision step.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finjepa_model.data.batches import Observation, checkpoint_splits, history_needed
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.imagination import Moments
from finjepa_pipeline.backtest.finjepa_strategy import Expectation
from finjepa_pipeline.backtest.market_imagination import MarketImagination
from finjepa_pipeline.backtest.market_view import MarketView

PAST_DATES = 160  # that are looked at: enough for a spread of regimes, little work
NEIGHBOURS = 5
_AT_ONCE = 16
_MIN_CALIBRATION = 20  # predictions; of fewer nothing is said


@dataclass(frozen=True)
class Regime:
    """A past close at which the market's latent was like today's; what the market did in the decision step after it."""

    date: str
    similarity: float  # cosine, of latents whose mean over the past is taken off
    market_return: float  # simple return of the market proxy over the decision step that followed


@dataclass(frozen=True)
class Calibration:
    """How the predicted spread of an equally weighted portfolio came out on past dates that no training has seen.

    Attributes:
        within: share of outcomes within one predicted standard deviation of what was predicted; 0.68 is right.
        ratio: realised standard deviation of the standardised outcomes; 1 is right, above it risk was underestimated.
    """

    predictions: int
    within: float | None
    ratio: float | None


@dataclass(frozen=True)
class Reasons:
    """`terms`: cost by term, lower is better; `path`: predicted (log growth, volatility) of each decision step ahead."""

    terms: dict[str, float]
    path: tuple[tuple[float, float], ...]
    step_sessions: int
    regimes: tuple[Regime, ...]
    calibration: Calibration


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
    past = [(int(s), MarketView(panel, int(s), assets_N, history)) for s in sessions_B]
    past = [(s, view) for s, view in past if view.present_N.any()]
    if not past:
        return Reasons(expected.terms, expected.path, stride, (), Calibration(0, None, None))
    now_D = _look(imagination, [MarketView(panel, session, assets_N, history)])[0][0]
    latents, means, spreads = _look(imagination, [view for _, view in past])
    followed = [_compound(panel.market_returns[s + 2 : s + 2 + stride]) for s, _ in past]
    center_D = latents.mean(0)
    similarity = torch.cosine_similarity(latents - center_D, (now_D - center_D)[None], dim=1)
    nearest = similarity.argsort(descending=True)[:NEIGHBOURS].tolist()
    regimes = tuple(Regime(str(past[b][1].date), float(similarity[b]), followed[b]) for b in nearest)
    unseen = _unseen_from(imagination, panel)
    return Reasons(
        expected.terms,
        expected.path,
        stride,
        regimes,
        _calibration(panel, assets_N, past, means.double().numpy(), spreads.double().numpy(), stride, unseen),
    )


def _unseen_from(imagination: MarketImagination, panel: Panel) -> int:
    """The first session after those that the model was trained on; the panel's end where that is not known."""
    try:
        return checkpoint_splits(imagination.folder, panel).validation[0]
    except FinJEPAError:
        return len(panel.dates)


def _look(imagination: MarketImagination, views: list[MarketView]) -> tuple[Tensor, Tensor, Tensor]:
    """Market latents [B, D] at the close, and predicted mean and volatility [B] of an equally weighted portfolio of what is
    present."""
    model = imagination.model
    latents, means, spreads = [], [], []
    for start in range(0, len(views), _AT_ONCE):
        observation = Observation.concatenate(
            [past.observation(model.config) for past in views[start : start + _AT_ONCE]]
        )
        _, market_BSD = model.encode(observation)
        moments = Moments.of(model.imagine(observation, 1))
        weights_BN = moments.present_BN / moments.present_BN.sum(-1, keepdim=True).clamp(min=1)
        beta_B = (weights_BN * moments.beta_BN).sum(-1)
        specific_B = (weights_BN.square() * moments.specific_variance_BHN[:, 0]).sum(-1)
        latents.append(market_BSD[:, -1])
        means.append((weights_BN * moments.mean_BHN[:, 0]).sum(-1))
        spreads.append((beta_B.square() * moments.market_variance_BH[:, 0] + specific_B).sqrt())
    return torch.cat(latents), torch.cat(means), torch.cat(spreads)


def _calibration(
    panel: Panel,
    assets_N: np.ndarray,
    past: list[tuple[int, MarketView]],
    mean_B: np.ndarray,
    spread_B: np.ndarray,
    stride: int,
    unseen_from: int,
) -> Calibration:
    chosen = [b for b, (s, _) in enumerate(past) if s >= unseen_from and spread_B[b] > 0]
    if len(chosen) < _MIN_CALIBRATION:
        return Calibration(len(chosen), None, None)
    outcomes = []
    for b in chosen:
        s, view = past[b]
        returns_1NT, _ = panel.returns_after(np.array([s + 1]), assets_N[None], stride)
        outcomes.append(np.mean([_compound(row) for row in returns_1NT[0][view.present_N]]))
    z = (np.array(outcomes) - mean_B[chosen]) / spread_B[chosen]
    return Calibration(len(chosen), float((np.abs(z) <= 1).mean()), float(np.sqrt((z**2).mean())))


def _compound(returns_T: np.ndarray) -> float:
    return float(np.prod(1 + returns_T.astype(np.float64)) - 1)
