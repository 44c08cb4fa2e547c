"""Stretches of real or synthetic market: a few decision steps that portfolios live through by the exact mechanics.

The market of a stretch is encoded once and serves many portfolios, for it does not listen to them.

Shapes: B decision dates, C portfolios on each, Y = B x C, N assets, O outcomes, K steps that a portfolio is held.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.observation import MarketBatch
from finjepa_model.planning.rollout import PlanningWorld
from finjepa_model.portfolio import PortfolioSimulator, PortfolioState
from finjepa_model.training.batches import BatchSource
from finjepa_model.training.panel import Panel
from finjepa_model.world_model import FinJEPA, Imagination
from finjepa_model.zero_shot.situation import Situation

DECISIONS = 3  # of a stretch; the first and the second are held to the next one


@dataclass(frozen=True)
class Stretch:
    """`DECISIONS` decisions of Y portfolios, each in a market of its own."""

    model: FinJEPA
    simulator: PortfolioSimulator
    imaginations: tuple[Imagination, ...]
    returns_YKTN: Tensor
    market_returns_YKT: Tensor
    tradable_YKTN: Tensor

    @property
    def present_YN(self) -> Tensor:
        return self.imaginations[0].present_BN

    def start(self) -> PortfolioState:
        """All in cash."""
        present_YN = self.present_YN
        return self.simulator.start(tuple(present_YN.shape), dtype=torch.float32, device=present_YN.device)

    def situation(self, decision: int, state: PortfolioState, outcome_YO: Tensor | None = None) -> Situation:
        """Where portfolios stand at a decision."""
        assert self.model.zero_shot is not None
        imagination = self.imaginations[decision]
        world = PlanningWorld.of(imagination, self.simulator, state, self.model.config.model.stride)
        return self.model.zero_shot.situation(imagination, world, outcome_YO)

    @torch.no_grad()
    def hold(self, decision: int, s: Situation, action: PortfolioAction) -> PortfolioState:
        """What an action has led to at the next decision."""
        k = decision - (DECISIONS - 1)
        moved, _ = self.simulator.step(
            s.world.state,
            action,
            self.returns_YKTN[:, k],
            self.market_returns_YKT[:, k],
            s.world.moments.beta_BN,
            self.tradable_YKTN[:, k],
        )
        return moved


class Stretches:
    """Those of a block of sessions; which are drawn is a function of the seed and a number alone.

    Args:
        block: half-open range of sessions.
        dates, portfolios: of a stretch.
    """

    def __init__(self, model: FinJEPA, panel: Panel, block: tuple[int, int], dates: int, portfolios: int):
        assert model.zero_shot is not None
        self.model, self.branch = model, model.zero_shot
        self.device = next(model.parameters()).device
        training = replace(model.config.training, batch_size=dates)
        self._source = BatchSource(panel, replace(model.config, training=training), block)
        self._simulator = PortfolioSimulator(model.config.portfolio)
        self._rows_Y = torch.arange(dates, device=self.device).repeat_interleave(portfolios)
        self._encoded: tuple[int, MarketBatch, list[Imagination]] | None = None

    def draw(self, number: int) -> Stretch:
        """The portfolios of a date stand side by side."""
        if self._encoded is None or self._encoded[0] != number:
            batch = self._source.draw(number).to(self.device)
            imaginations = [self.model.imagine(batch.observation.step(k - DECISIONS), 1) for k in range(DECISIONS)]
            self._encoded = (number, batch, imaginations)
        _, batch, imaginations = self._encoded
        looks = (self._look(imagination, batch, k) for k, imagination in enumerate(imaginations))
        return Stretch(
            self.model,
            self._simulator,
            tuple(look.take(self._rows_Y) for look in looks),
            batch.returns_BKTN[self._rows_Y],
            batch.market_returns_BKT[self._rows_Y],
            batch.tradable_BKTN[self._rows_Y],
        )

    def _look(self, imagination: Imagination, batch: MarketBatch, k: int) -> Imagination:
        """With the latents that the branch's own encoder makes now, where it has one: it changes from step to step."""
        if self.branch.own_encoders is None:
            return imagination
        return replace(
            imagination, seen_BMD=self.branch.see(imagination.seen_BMD, batch.observation.step(k - DECISIONS))
        )
