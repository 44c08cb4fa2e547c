"""The market of a decision, as a checkpoint imagines it.

Shapes: N assets of a view, H decision steps, B is 1.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from finjepa_model.checkpoint import resolve_checkpoint
from finjepa_model.config import FinJEPAConfig
from finjepa_model.planning.goals import goal_latent, target_latent
from finjepa_model.planning.imagination import ImaginedMarket
from finjepa_model.planning.utility import parse_goal
from finjepa_model.portfolio import PortfolioSimulator
from finjepa_model.world_model import FinJEPA, Imagination
from finjepa_pipeline.backtest.market_view import MarketView

HORIZON = 2  # decision steps


class Imagined(Protocol):
    """What a planner plans in: the market of a decision, as somebody imagines it."""

    @property
    def config(self) -> FinJEPAConfig: ...
    @property
    def simulator(self) -> PortfolioSimulator: ...
    def at(self, view: MarketView) -> tuple[ImaginedMarket, torch.Tensor | None]:
        """The imagined market, and the latent of its goal, goal_1D, where there is one."""
        ...

    def goal(self, name: str, view: MarketView) -> torch.Tensor:
        """The latent goal_1D of a goal that a utility names."""
        ...


class MarketImagination:
    """The market as a checkpoint imagines it. It does not depend on what is held, so every planner of the checkpoint shares
    it.

    Each date is imagined by itself: in a batch the last digits depend on the other dates, and a search turns last digits into
    another plan. So a backtest and a single decision of the same close agree.
    """

    def __init__(self, checkpoint: str | Path):
        # Tensors of a plan are small: a second thread gains little, and on a busy machine it costs ten times the time.
        torch.set_num_threads(1)
        self.checkpoint = checkpoint
        self.folder = resolve_checkpoint(checkpoint)
        self.model = FinJEPA.from_pretrained(self.folder)
        self.config = self.model.config
        self.simulator = PortfolioSimulator(self.config.portfolio)
        self._imagined: dict[MarketView, tuple[Imagination, torch.Tensor]] = {}

    def forget(self) -> None:
        """Free what was imagined; nothing else is forgotten by itself."""
        self._imagined.clear()

    def at(self, view: MarketView) -> tuple[Imagination, torch.Tensor]:
        """The imagined market of a decision, and the latent of its goal, goal_1D."""
        if view not in self._imagined:
            imagination = self.model.imagine(view.observation(self.config), HORIZON)
            goal_1D = goal_latent(imagination, self.simulator, self.config.model.stride)
            self._imagined[view] = imagination, goal_1D
        return self._imagined[view]

    def goal(self, name: str, view: MarketView) -> torch.Tensor:
        """The latent goal_1D of a goal that a utility names: a state in the market of now, or what went best in similar
        markets on training dates."""
        imagination, _ = self.at(view)
        target = parse_goal(name)
        if target is not None:
            return target_latent(imagination, self.simulator, self.config.model.stride, target)
        return view.goal_library(self.model, self.folder).nearest(imagination.tokens_BMD[:, -1], view.session)

    def forecast(self, view: MarketView) -> np.ndarray:
        """Expected simple return of each asset over the next decision step, [N]."""
        return self.at(view)[0].mean_BHN[0, 0].numpy()
