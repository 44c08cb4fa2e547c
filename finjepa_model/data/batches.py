"""Observations, splits and batches of a panel.

A batch is a function of the seed and the step alone, so training resumes without the state of a loader, and every rank takes
its own slice of the global batch. The split dates of a training are kept in its checkpoint and hold on whatever panel it is
used later.

Shapes: B decision dates, S decision steps, N assets, T sessions of a window, F channels, Q market channels, K sessions from
one decision to the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.panel import Panel, in_channels
from finjepa_model.data.splits import history_needed, seen_assets
from finjepa_model.errors import FinJEPAError


def recency(sessions: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """weights_T of an exponentially weighted mean over a window, newest last; its span is half the window (for 64 sessions
    the decay of RiskMetrics 1996, .94)."""
    age_T = torch.arange(sessions - 1, -1, -1).to(dtype)
    decay_T = (1 - 4 / (sessions + 2)) ** age_T
    return decay_T / decay_T.sum()


_WHOLE = ("present_BN", "past_BNR", "market_past_BR")  # what an observation has once, not for each step


@dataclass(frozen=True)
class Windows:
    """What an encoder sees at S decision steps in a row: a window of T sessions for each."""

    features_BSNTF: Tensor  # normalised channels, 0 where not observed
    observed_BSNT: Tensor  # bool
    market_BSTQ: Tensor  # normalised channels of the market as a whole
    present_BN: Tensor  # bool: the asset can be decided on

    @property
    def steps(self) -> int:
        return self.features_BSNTF.shape[1]

    def to(self, device: torch.device | str) -> Self:
        return type(self)(**{name: x.to(device, non_blocking=True) for name, x in self._parts().items()})

    def _parts(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


@dataclass(frozen=True)
class Observation(Windows):
    """The market at S decision steps in a row; everything of a step is known at its close."""

    volatility_BSN: Tensor  # daily, exponentially weighted over the window; see `recency`
    market_volatility_BS: Tensor  # the same of the market proxy
    beta_BSN: Tensor  # trailing, to the market proxy
    # simple returns of the last PAST sessions up to the last step, NaN where not observed; None where nobody forecasts risk
    past_BNR: Tensor | None = None
    market_past_BR: Tensor | None = None

    def step(self, step: int, stride: int = 0) -> "Observation":
        """One of the steps; a negative number counts from the last one.

        Args:
            stride: sessions from one step to the next; with it an earlier step keeps what was its past, else it has none.
        """
        step %= self.steps
        later = self.steps - 1 - step
        parts = {name: x[:, step : step + 1] for name, x in self._parts().items() if name not in _WHOLE}
        if not later or stride:
            known = slice(None, -stride * later or None)
            parts |= {name: x[..., known] for name, x in self._parts().items() if name in _WHOLE[1:]}
        return Observation(present_BN=self.present_BN, **parts)


@dataclass(frozen=True)
class MarketBatch:
    """An observation of S = W + K steps and what happened after them.

    The portfolio is held from step W - 2 on, one step before the first that is learned from, so that its first state is
    one of a portfolio that has drifted.
    """

    observation: Observation
    # the window that begins after each step but the last: no session of it is in a window of the context
    ahead: Windows
    returns_BKTN: Tensor  # daily returns in each decision step that is held, K = rollout steps + 1
    market_returns_BKT: Tensor
    tradable_BKTN: Tensor  # bool
    # daily returns after the last context step, NaN beyond the block and where not observed; None where nobody learns risk
    after_BNT: Tensor | None = None

    def to(self, device: torch.device | str) -> "MarketBatch":
        return MarketBatch(**{name: x.to(device) for name, x in self._parts().items()})

    def _parts(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


_LEAST_ASSETS = 6  # of a session that is learned from
PAST = 504  # sessions of returns that forecasts of risk look back on
RISK_SESSIONS = 63  # after a date, over which volatility is learned


@dataclass(frozen=True)
class EligibleIndex:
    """Eligible pairs, by session.

    Attributes:
        sessions: int64 [K], ascending.
        starts: int64 [K + 1]; the assets of session k are `assets[starts[k] : starts[k + 1]]`, ascending.
        assets: int32 [P].
    """

    sessions: np.ndarray
    starts: np.ndarray
    assets: np.ndarray

    @classmethod
    def of(cls, panel: Panel, window: int, start: int, stop: int, least: int, allowed: np.ndarray | None = None):
        """Pairs of the sessions start .. stop - 1 that are in the universe and have `window` rows behind them.

        What comes after does not matter: an asset that is about to be delisted is eligible.

        Args:
            least: sessions with fewer eligible assets are left out.
            allowed: bool [A], the assets to choose from; all by default.

        Raises:
            FinJEPAError: if no session is left.
        """
        sessions_P, assets_P = [], []
        for asset in range(len(panel.assets)):
            first, length = int(panel.first[asset]), int(panel.lengths[asset])
            low, high = max(start, first + window - 1), min(stop, first + length)
            if low < high and (allowed is None or allowed[asset]):
                row = int(panel.offsets[asset]) - first
                found = low + np.flatnonzero(panel.eligible[row + low : row + high])
                sessions_P.append(found.astype(np.int32))
                assets_P.append(np.full(len(found), asset, np.int32))
        session_P = np.concatenate([np.zeros(0, np.int32), *sessions_P])
        asset_P = np.concatenate([np.zeros(0, np.int32), *assets_P])
        counts = np.bincount(session_P, minlength=len(panel.dates))
        sessions = np.flatnonzero(counts >= max(least, 1))
        if not len(sessions):
            raise FinJEPAError(
                f"no session from {panel.dates[start]} to {panel.dates[min(stop, len(panel.dates)) - 1]} has {least} "
                f"eligible assets with {window} sessions of history (at most {counts.max(initial=0)}): "
                "ask for fewer assets, a shorter window or more prices"
            )
        order = np.argsort(session_P, kind="stable")
        kept = order[(counts >= max(least, 1))[session_P[order]]]
        return cls(sessions, np.concatenate([[0], np.cumsum(counts[sessions])]), asset_P[kept])

    def __len__(self) -> int:
        return len(self.sessions)


class DateSampler:
    """Batches of (sessions [B], assets [B, N]): each epoch is a new order of the sessions."""

    def __init__(self, index: EligibleIndex, batch_size: int, n_assets: int, seed: int):
        self.index = index
        self.batch_size = batch_size
        self.n_assets = n_assets
        self.seed = seed

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Sessions int64 [B] and assets int64 [B, N] of a step; -1 where a session has fewer."""
        draw = step * self.batch_size + np.arange(self.batch_size)
        epoch_B, place_B = np.divmod(draw, len(self.index))
        chosen_B = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epoch_B):  # one, or two where an epoch ends inside the batch
            order = np.random.default_rng([self.seed, int(epoch)]).permutation(len(self.index))
            chosen_B[epoch_B == epoch] = order[place_B[epoch_B == epoch]]
        random = np.random.default_rng([self.seed, step, 1])
        start_B = self.index.starts[chosen_B]
        subset_BN = subsets(random, self.index.starts[chosen_B + 1] - start_B, self.n_assets)
        chosen_BN = self.index.assets[start_B[:, None] + np.maximum(subset_BN, 0)].astype(np.int64)
        return self.index.sessions[chosen_B], np.where(subset_BN >= 0, chosen_BN, -1)


def subsets(random: np.random.Generator, size_B: np.ndarray, count: int) -> np.ndarray:
    """int64 [B, N]: `count` different numbers below size_B, every subset equally likely (Floyd's algorithm); where there are
    fewer, all of them, and -1.

    Works draw by draw for all of the batch at once; touches N numbers a session, not the whole universe.
    """
    chosen_BN = np.full((len(size_B), count), -1, np.int64)
    for draw in range(count):
        top_B = size_B - np.minimum(size_B, count) + draw
        pick_B = random.integers(0, np.minimum(top_B + 1, size_B))
        taken_B = (chosen_BN[:, :draw] == pick_B[:, None]).any(axis=1)
        chosen_BN[:, draw] = np.where(draw < size_B, np.where(taken_B, top_B, pick_B), -1)
    return chosen_BN


# Below this daily volatility a price is stale, and returns in units of it would mean nothing.
_MIN_VOLATILITY = 1e-3


def observe(
    panel: Panel, dates_B: np.ndarray, assets_BN: np.ndarray, steps: int, config: FinJEPAConfig, past: int = PAST
) -> Observation:
    """The market at `steps` decision steps, the last of which is at `dates_B`.

    Args:
        dates_B: session numbers.
        assets_BN: asset numbers, -1 for none.
        past: sessions of returns that the observation carries, for forecasts of risk; 0 for none.
    """
    model = config.model
    offsets_S = model.stride * np.arange(1 - steps, 1)
    dates_BS = np.asarray(dates_B)[:, None] + offsets_S
    assets_BSN = np.broadcast_to(assets_BN[:, None, :], (*dates_BS.shape, assets_BN.shape[1]))
    flat_dates, flat_assets = dates_BS.ravel(), assets_BSN.reshape(-1, assets_BN.shape[1])
    features, observed = panel.windows(flat_dates, flat_assets, model.window, model.channels)
    daily, _ = panel.returns_after(flat_dates - model.window, flat_assets, model.window)
    market_T = np.lib.stride_tricks.sliding_window_view(panel.market_returns, model.window)
    market = market_T[np.clip(flat_dates - model.window + 1, 0, len(market_T) - 1)]
    rows_BSN = panel.rows(dates_BS[..., None], assets_BSN)
    beta_BSN = np.where(rows_BSN >= 0, panel.beta[rows_BSN], np.float32(1))
    context = panel.market_windows(flat_dates, model.window, model.market_channels)
    shape = assets_BSN.shape
    return Observation(
        features_BSNTF=_tensor(features).view(*shape, model.window, -1),
        observed_BSNT=_tensor(observed).view(*shape, model.window),
        market_BSTQ=_tensor(context).view(*dates_BS.shape, model.window, -1),
        present_BN=_tensor(assets_BN >= 0),
        volatility_BSN=volatility(_tensor(daily)).view(shape),
        market_volatility_BS=volatility(_tensor(market).float()).view(dates_BS.shape),
        beta_BSN=_tensor(beta_BSN),
        **(past_returns(panel, np.asarray(dates_B), assets_BN, past) if past else {}),
    )


def past_returns(panel: Panel, dates_B: np.ndarray, assets_BN: np.ndarray, sessions: int) -> dict[str, Tensor]:
    """past_BNR and market_past_BR of an observation: what was known at the close of each date."""
    days_BR = dates_B[:, None] + np.arange(1 - sessions, 1)
    rows_BNR = panel.rows(days_BR[:, None, :], assets_BN[:, :, None])
    known_BNR = (rows_BNR >= 0) & panel.observed[rows_BNR]
    market_BR = np.where(days_BR >= 0, panel.market_returns[np.maximum(days_BR, 0)], np.float32("nan"))
    past_BNR = np.where(known_BNR, panel.returns[rows_BNR], np.float32("nan"))
    return {"past_BNR": _tensor(past_BNR), "market_past_BR": _tensor(market_BR)}


def step_returns(panel: Panel, dates_B: np.ndarray, assets_BN: np.ndarray, stride: int) -> np.ndarray:
    """Simple return_BN, float64, from the fill of a decision at each close, in the session after it, to the next fill."""
    daily_BNT, _ = panel.returns_after(dates_B + 1, assets_BN, stride)
    return np.expm1(np.log1p(daily_BNT.astype(np.float64)).sum(-1))


def returns_until(panel: Panel, dates_B: np.ndarray, assets_BN: np.ndarray, sessions: int, stop: int) -> Tensor:
    """returns_BNT of the sessions after each date; NaN from session `stop` on and where the asset has none."""
    days_BT = np.asarray(dates_B)[:, None] + np.arange(1, sessions + 1)
    rows_BNT = panel.rows(days_BT[:, None], assets_BN[:, :, None])
    known_BNT = (rows_BNT >= 0) & panel.observed[rows_BNT] & (days_BT < stop)[:, None]
    return _tensor(np.where(known_BNT, panel.returns[rows_BNT], np.float32("nan")))


def windows_after(
    panel: Panel, dates_BS: np.ndarray, assets_BN: np.ndarray, config: FinJEPAConfig, stop: int
) -> Windows:
    """The window that begins in the session after each date; sessions from `stop` on are not observed."""
    window = config.model.window
    ends_Y = dates_BS.ravel() + window
    features, observed = panel.windows(
        ends_Y, np.repeat(assets_BN, dates_BS.shape[1], axis=0), window, config.model.channels
    )
    days_YT = ends_Y[:, None] + np.arange(1 - window, 1)
    inside_YT = days_YT < stop
    observed &= inside_YT[:, None]
    features *= observed[..., None]
    market = panel.market_features[np.where(inside_YT, days_YT, 0)] * inside_YT[..., None]
    market = in_channels(market, panel.market_channels, config.model.market_channels)
    shape = (*dates_BS.shape, assets_BN.shape[1], window)
    return Windows(
        features_BSNTF=_tensor(features).view(*shape, -1),
        observed_BSNT=_tensor(observed).view(shape),
        market_BSTQ=_tensor(market).view(*dates_BS.shape, window, -1),
        present_BN=_tensor(assets_BN >= 0),
    )


def volatility(returns_XT: Tensor) -> Tensor:
    """Daily volatility_X: exponentially weighted root mean square, for volatility comes in spells (Engle 1982)."""
    return (returns_XT.square() @ recency(returns_XT.shape[-1], returns_XT.dtype)).sqrt().clamp(min=_MIN_VOLATILITY)


class BatchSource:
    """Draws training batches from a block of sessions: nothing outside it is a target, nothing after it is read.

    Args:
        block: half-open range of sessions.
        rank, ranks: this process takes every `ranks`-th sample of the global batch.
        past: sessions of returns that observations carry; see `observe`.

    Raises:
        FinJEPAError: if no session of the block has enough eligible assets with enough history.
    """

    def __init__(
        self,
        panel: Panel,
        config: FinJEPAConfig,
        block: tuple[int, int],
        rank: int = 0,
        ranks: int = 1,
        past: int = 0,
    ):
        self.panel, self.config, self.past, self.stop = panel, config, past, block[1]
        self.rank, self.ranks = rank, ranks
        model, training = config.model, config.training
        history = history_needed(config) + model.stride
        # the labels of the last step are the returns of one more decision step, which begins at its fill
        last = block[1] - model.stride * (config.loss.rollout_steps + 1) - 1
        seen_A = seen_assets(panel, config)
        n_assets = min(training.n_assets, int(seen_A.sum()))
        least = min(n_assets, _LEAST_ASSETS)
        index = EligibleIndex.of(panel, history, max(block[0], history), last, least=least, allowed=seen_A)
        self.sampler = DateSampler(index, training.batch_size, n_assets, training.seed)

    def draw(self, step: int) -> MarketBatch:
        """This process's share of the global batch of a step."""
        dates_B, assets_BN = self.sampler.batch(step)
        mine = slice(self.rank, None, self.ranks)
        return self.batch(dates_B[mine], assets_BN[mine])

    def batch(self, dates_B: np.ndarray, assets_BN: np.ndarray) -> MarketBatch:
        """The batch whose last context step is at `dates_B`."""
        model, steps = self.config.model, self.config.loss.rollout_steps
        stride, length = model.stride, model.context_steps + steps
        last_B = dates_B + stride * steps
        observation = observe(self.panel, last_B, assets_BN, length, self.config, self.past)
        after_BNT = returns_until(self.panel, dates_B, assets_BN, RISK_SESSIONS, self.stop)

        contexts_BS = last_B[:, None] + stride * np.arange(1 - length, 0)
        held_BNR, tradable_BNR = self.panel.returns_after(dates_B - stride, assets_BN, stride * (steps + 1))
        held_sessions = dates_B[:, None] - stride + np.arange(1, stride * (steps + 1) + 1)
        shape = (len(dates_B), steps + 1, stride)
        return MarketBatch(
            observation=observation,
            ahead=windows_after(self.panel, contexts_BS, assets_BN, self.config, self.stop),
            returns_BKTN=_tensor(held_BNR).transpose(1, 2).reshape(*shape, -1),
            market_returns_BKT=_tensor(self.panel.market_returns[held_sessions]).float().view(shape),
            tradable_BKTN=_tensor(tradable_BNR).transpose(1, 2).reshape(*shape, -1),
            after_BNT=after_BNT if self.config.loss.risk > 0 else None,
        )


class PooledBatches:
    """Draws each batch from one of several sources, in proportion to their sessions."""

    def __init__(self, sources: Sequence[BatchSource], seed: int):
        self.sources, self.seed = sources, seed
        sessions = np.array([len(source.sampler.index) for source in sources], float)
        self._shares = sessions / sessions.sum()

    def draw(self, step: int) -> MarketBatch:
        """See `BatchSource.draw`."""
        chosen = np.random.default_rng([self.seed, step, 2]).choice(len(self.sources), p=self._shares)
        return self.sources[chosen].draw(step)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
