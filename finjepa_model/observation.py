"""What the world model sees of the market, and a batch of it to learn from.

Shapes: B decision dates, S decision steps, N assets, T sessions of a window, F channels, Q market channels,
K steps that a portfolio is held.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


def recency(sessions: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """weights_T of an exponentially weighted mean over a window, newest last; its span is half the window (for 64 sessions
    the decay of RiskMetrics 1996, .94)."""
    age_T = torch.arange(sessions - 1, -1, -1).to(dtype)
    decay_T = (1 - 4 / (sessions + 2)) ** age_T
    return decay_T / decay_T.sum()


@dataclass(frozen=True)
class Observation:
    """The market at S decision steps in a row; everything of a step is known at its close."""

    features_BSNTF: Tensor  # normalised channels, 0 where not observed
    observed_BSNT: Tensor  # bool
    market_BSTQ: Tensor  # normalised channels of the market as a whole
    present_BN: Tensor  # bool: the asset can be decided on
    volatility_BSN: Tensor  # daily, exponentially weighted over the window; see `recency`
    market_volatility_BS: Tensor  # the same of the market proxy
    beta_BSN: Tensor  # trailing, to the market proxy

    @property
    def steps(self) -> int:
        return self.features_BSNTF.shape[1]

    def step(self, step: int) -> "Observation":
        """One of the steps; a negative number counts from the last one."""
        step %= self.steps
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Observation(**{n: x if n == "present_BN" else x[:, step : step + 1] for n, x in parts.items()})

    @classmethod
    def concatenate(cls, parts: Sequence["Observation"]) -> "Observation":
        """Along the dates; all parts have the same number of assets."""
        return cls(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)})

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(getattr(self, f.name).nbytes for f in fields(self))

    def to(self, device: torch.device | str) -> "Observation":
        return Observation(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


@dataclass(frozen=True)
class MarketBatch:
    """An observation of S = W + K steps and what happened after them.

    The portfolio is held from step W - 2 on, one step before the first that is learned from, so that its first state is
    one of a portfolio that has drifted.
    """

    observation: Observation
    step_return_BSN: Tensor  # simple return from the fill of a decision at that step to the next fill
    step_return_valid_BSN: Tensor  # bool
    market_step_return_BS: Tensor
    returns_BKTN: Tensor  # daily returns in each decision step that is held, K = rollout steps + 1
    market_returns_BKT: Tensor
    tradable_BKTN: Tensor  # bool

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors, the observation's included: what is gathered from the panel and moved to the device."""
        return sum(getattr(self, f.name).nbytes for f in fields(self))

    def to(self, device: torch.device | str) -> "MarketBatch":
        return MarketBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})
