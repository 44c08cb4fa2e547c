"""From the panel to observations and batches. A batch is a function of the seed and the step alone, so training resumes
without the state of a loader, and every rank knows which part of the global batch is its own.

Shapes: B decision dates, S decision steps, N assets, T sessions, K steps that a portfolio is held.
"""

import numpy as np
import torch
from torch import Tensor

from finjepa_model.config import FinJEPAConfig
from finjepa_model.observation import MarketBatch, Observation, recency
from finjepa_model.training.panel import Panel
from finjepa_model.training.sampler import DateSampler, EligibleIndex
from finjepa_model.training.splits import history_needed, unseen

# Below this daily volatility a price is stale, and returns in units of it would mean nothing.
_MIN_VOLATILITY = 1e-3


def observe(panel: Panel, dates_B: np.ndarray, assets_BN: np.ndarray, steps: int, config: FinJEPAConfig) -> Observation:
    """The market at `steps` decision steps, the last of which is at `dates_B`.

    Args:
        dates_B: session numbers.
        assets_BN: asset numbers, -1 for none.
    """
    model = config.model
    offsets_S = model.stride * np.arange(1 - steps, 1)
    dates_BS = np.asarray(dates_B)[:, None] + offsets_S
    assets_BSN = np.broadcast_to(assets_BN[:, None, :], (*dates_BS.shape, assets_BN.shape[1]))
    flat_dates, flat_assets = dates_BS.ravel(), assets_BSN.reshape(-1, assets_BN.shape[1])
    features, observed = panel.windows(flat_dates, flat_assets, model.window)
    daily, _ = panel.returns_after(flat_dates - model.window, flat_assets, model.window)
    market_T = np.lib.stride_tricks.sliding_window_view(panel.market_returns, model.window)
    market = market_T[np.clip(flat_dates - model.window + 1, 0, len(market_T) - 1)]
    rows_BSN = panel.rows(dates_BS[..., None], assets_BSN)
    beta_BSN = np.where(rows_BSN >= 0, panel.beta[rows_BSN], np.float32(1))
    context = panel.market_windows(flat_dates, model.window)
    shape = assets_BSN.shape
    return Observation(
        features_BSNTF=_tensor(features).view(*shape, model.window, -1),
        observed_BSNT=_tensor(observed).view(*shape, model.window),
        market_BSTQ=_tensor(context).view(*dates_BS.shape, model.window, -1),
        present_BN=_tensor(assets_BN >= 0),
        volatility_BSN=volatility(_tensor(daily)).view(shape),
        market_volatility_BS=volatility(_tensor(market).float()).view(dates_BS.shape),
        beta_BSN=_tensor(beta_BSN),
    )


def volatility(returns_XT: Tensor) -> Tensor:
    """Daily volatility_X: exponentially weighted root mean square, for volatility comes in spells (Engle 1982)."""
    return (returns_XT.square() @ recency(returns_XT.shape[-1], returns_XT.dtype)).sqrt().clamp(min=_MIN_VOLATILITY)


class BatchSource:
    """Draws training batches from a block of sessions: nothing outside it is a target, nothing after it is read.

    Args:
        block: half-open range of sessions.
        rank, ranks: this process takes every `ranks`-th sample of the global batch.

    Raises:
        FinJEPAError: if no session of the block has enough eligible assets with enough history.
    """

    def __init__(self, panel: Panel, config: FinJEPAConfig, block: tuple[int, int], rank: int = 0, ranks: int = 1):
        self.panel, self.config = panel, config
        self.rank, self.ranks = rank, ranks
        model, training = config.model, config.training
        history = history_needed(config) + model.stride
        # the labels of the last step are the returns of one more decision step, which begins at its fill
        last = block[1] - model.stride * (config.loss.rollout_steps + 1) - 1
        seen_A = np.array([not unseen(symbol, training.unseen_symbols) for symbol in panel.assets])
        n_assets = min(training.n_assets, int(seen_A.sum()))
        index = EligibleIndex.of(panel, history, max(block[0], history), last, least=n_assets, allowed=seen_A)
        self.sampler = DateSampler(index, training.batch_size, n_assets, training.seed)

    def draw(self, step: int, part: int = 0, parts: int = 1) -> MarketBatch:
        """This process's share of the global batch of a step, or of one of the parts that the batch is divided into."""
        dates_B, assets_BN = self.sampler.batch(step)
        dates_B, assets_BN = dates_B[part::parts], assets_BN[part::parts]
        mine = slice(self.rank, None, self.ranks)
        return self.batch(dates_B[mine], assets_BN[mine])

    def batch(self, dates_B: np.ndarray, assets_BN: np.ndarray) -> MarketBatch:
        """The batch whose last context step is at `dates_B`."""
        model, steps = self.config.model, self.config.loss.rollout_steps
        stride, length = model.stride, model.context_steps + steps
        last_B = dates_B + stride * steps
        observation = observe(self.panel, last_B, assets_BN, length, self.config)

        fills_BS = last_B[:, None] + stride * np.arange(1 - length, 1) + 1
        assets_YN = np.repeat(assets_BN, length, axis=0)
        ahead_YNT, _ = self.panel.returns_after(fills_BS.ravel(), assets_YN, stride)
        valid_BSN = self.panel.rows(fills_BS[..., None] + stride, assets_BN[:, None, :]) >= 0
        market_BST = self.panel.market_returns[fills_BS[..., None] + np.arange(1, stride + 1)]

        held_BNR, tradable_BNR = self.panel.returns_after(dates_B - stride, assets_BN, stride * (steps + 1))
        held_sessions = dates_B[:, None] - stride + np.arange(1, stride * (steps + 1) + 1)
        shape = (len(dates_B), steps + 1, stride)
        return MarketBatch(
            observation=observation,
            step_return_BSN=(_tensor(ahead_YNT).double().log1p().sum(-1).expm1().float()).view(valid_BSN.shape),
            step_return_valid_BSN=_tensor(valid_BSN),
            market_step_return_BS=_tensor(market_BST).double().log1p().sum(-1).expm1().float(),
            returns_BKTN=_tensor(held_BNR).transpose(1, 2).reshape(*shape, -1),
            market_returns_BKT=_tensor(self.panel.market_returns[held_sessions]).float().view(shape),
            tradable_BKTN=_tensor(tradable_BNR).transpose(1, 2).reshape(*shape, -1),
        )


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
