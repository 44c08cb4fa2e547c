"""What can be judged: anything with a name that decides from a view. And the three simplest, which need no estimate.

Shapes: N assets of the view, T sessions; a leading 1 is the batch of one portfolio.
"""

from typing import Protocol

import numpy as np
import torch

from finjepa_model.actions import PortfolioAction
from finjepa_model.portfolio import PortfolioState
from finjepa_pipeline.backtest.market_view import MarketView
from finjepa_pipeline.backtest.metrics import BENCHMARK


class Strategy(Protocol):
    """Decides at a close; the engine fills at the next one."""

    @property
    def name(self) -> str: ...

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction | None:
        """
        Args:
            view: what is known.
            state: the portfolio at that close, a batch of one over the view's assets.

        Returns:
            An action with weights [1, N] and signals [1, N] over the view's assets and hedge [1]; None for no orders.
        """
        ...


class EqualWeight:
    """1/N over the assets that are present, rebalanced at every decision."""

    name = BENCHMARK

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction:
        return long_only(equal_weights(view.present_N))


class BuyAndHold:
    """1/N once, and again when the universe is chosen anew; no orders in between."""

    name = "buy_and_hold"

    def __init__(self) -> None:
        self._bought: tuple[str, ...] = ()

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction | None:
        if view.assets == self._bought:
            return None
        self._bought = view.assets
        return long_only(equal_weights(view.present_N))


class Cash:
    """Every asset flat."""

    name = "cash"

    def decide(self, view: MarketView, state: PortfolioState) -> PortfolioAction:
        weights_N = equal_weights(view.present_N)
        return PortfolioAction(
            torch.from_numpy(weights_N)[None], torch.zeros(1, len(weights_N), dtype=torch.float64), _unhedged()
        )


def long_only(weights_N: np.ndarray) -> PortfolioAction:
    """Hold these weights, unhedged. They are normalised to sum to 1."""
    weights_1N = torch.from_numpy(weights_N / weights_N.sum())[None]
    return PortfolioAction(weights_1N, torch.ones_like(weights_1N), _unhedged())


def equal_weights(present_N: np.ndarray) -> np.ndarray:
    """1/N over the present assets. With none, over everything: the orders are then dropped at the fill."""
    chosen_N = present_N if present_N.any() else np.ones_like(present_N)
    return chosen_N / chosen_N.sum()


def _unhedged() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.float64)
