"""Transitions without rewards: real or synthetic market paths, portfolios on them by the exact mechanics, sampled actions.

Nothing is stored; the market of a batch is encoded once and serves many portfolios, for it does not listen to them.

Shapes: B decision dates, C portfolios on each, Y = B x C, S steps of an observation, N assets, O outcomes, Q quantities.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finjepa_model.actions import PortfolioAction
from finjepa_model.observation import MarketBatch
from finjepa_model.planning.rollout import PlanningWorld
from finjepa_model.portfolio import PortfolioSimulator, PortfolioState
from finjepa_model.training.batches import BatchSource
from finjepa_model.training.behaviour import random_action, random_drawdown
from finjepa_model.training.panel import Panel
from finjepa_model.training.splits import split_dates
from finjepa_model.world_model import FinJEPA, Imagination
from finjepa_model.zero_shot.situation import CONSEQUENCES, QUANTITY_NAMES, REALISED, Situation, realised

_ACTED = 0.5  # share of actions that are the actor's own, so that its values are learned where they are used
_WAITS = 0.15  # share of portfolios that have bought nothing before the first state
_SEEN = 3  # decision steps: one that leads to the first state, the first state's, and the next one's


@dataclass(frozen=True)
class Transition:
    before: Situation
    action: PortfolioAction
    after: Situation
    quantities_YQ: Tensor  # `QUANTITY_NAMES` of the step between them
    task_YZ: Tensor  # that the actor had in mind where it acted


class Experience:
    """Draws the transitions of a step of training from the training block of a panel."""

    def __init__(self, model: FinJEPA, panel: Panel):
        assert model.zero_shot is not None
        self.model, self.branch, self.config = model, model.zero_shot, model.config
        self.device = next(model.parameters()).device
        training = replace(self.config.training, batch_size=self.config.td.dates)
        self.source = BatchSource(
            panel, replace(self.config, training=training), split_dates(len(panel.dates), self.config).train
        )
        self.simulator = PortfolioSimulator(self.config.portfolio)
        self._encoded: tuple[int, MarketBatch, list[Imagination]] | None = None

    def draw(self, step: int) -> Transition:
        """The transitions of a step; what is random in them comes from torch's global generator."""
        batch, imaginations = self._market(step // self.config.td.reuse)
        rows_Y = torch.arange(self.config.td.dates, device=self.device).repeat_interleave(self.config.td.portfolios)
        lead, first, following = (
            self._look(imagination, batch, k).take(rows_Y) for k, imagination in enumerate(imaginations)
        )
        returns_YKTN, market_YKT, tradable_YKTN = (
            x[rows_Y] for x in (batch.returns_BKTN, batch.market_returns_BKT, batch.tradable_BKTN)
        )
        present_YN = first.present_BN

        def hold(s: Situation, action: PortfolioAction, k: int) -> tuple[PortfolioState, Tensor]:
            with torch.no_grad():
                expected_YQ = s.quantities(action, QUANTITY_NAMES[: -len(REALISED)])
                beta_YN = s.world.moments.beta_BN
                moved, _ = self.simulator.step(
                    s.world.state, action, returns_YKTN[:, k], market_YKT[:, k], beta_YN, tradable_YKTN[:, k]
                )
                return moved, torch.cat([expected_YQ, realised(s.world.state, moved)], dim=-1)

        start = self.simulator.start(tuple(present_YN.shape), dtype=torch.float32, device=self.device)
        leading = self._situation(lead, random_drawdown(start))
        task_YZ = self._tasks(leading)
        led_by = self._mixture(leading, task_YZ, None)
        # the others stand in cash, where every portfolio begins
        waits_Y1 = torch.rand(len(task_YZ), 1, device=self.device) < _WAITS
        led_by = replace(led_by, signals_XN=torch.where(waits_Y1, 0.0, led_by.signals_XN))
        state, quantities_YQ = hold(leading, led_by, -2)
        before = self._situation(first, state, _outcome(quantities_YQ))
        action = self._mixture(before, task_YZ, led_by)
        state, quantities_YQ = hold(before, action, -1)
        after = self._situation(following, state, _outcome(quantities_YQ))
        return Transition(before, action, after, quantities_YQ, task_YZ)

    @torch.no_grad()
    def _tasks(self, s: Situation) -> Tensor:
        return self.branch.algorithm.draw_tasks(self.branch.algorithm.task_encoder(s))

    @torch.no_grad()
    def _mixture(self, s: Situation, task_YZ: Tensor, last: PortfolioAction | None) -> PortfolioAction:
        """Some actions of the behaviour policy, some of the actor on these tasks."""
        algorithm = self.branch.algorithm
        acted = algorithm.actor(s, algorithm.encode(s), task_YZ)
        other = random_action(s.present_YN, last, self.config.portfolio)
        is_acted_Y = torch.rand(len(task_YZ), device=self.device) < _ACTED
        return PortfolioAction(
            torch.where(is_acted_Y.unsqueeze(-1), acted.weights_XN, other.weights_XN),
            torch.where(is_acted_Y.unsqueeze(-1), acted.signals_XN, other.signals_XN),
            torch.where(is_acted_Y, acted.hedge_X, other.hedge_X),
        )

    def _situation(
        self, imagination: Imagination, state: PortfolioState, outcome_YO: Tensor | None = None
    ) -> Situation:
        world = PlanningWorld.of(imagination, self.simulator, state, self.config.model.stride)
        return self.branch.situation(imagination, world, outcome_YO)

    def _market(self, index: int) -> tuple[MarketBatch, list[Imagination]]:
        if self._encoded is None or self._encoded[0] != index:
            batch = self.source.draw(index).to(self.device)
            self._encoded = (
                index,
                batch,
                [self.model.imagine(batch.observation.step(k - _SEEN), 1) for k in range(_SEEN)],
            )
        return self._encoded[1:]

    def _look(self, imagination: Imagination, batch: MarketBatch, k: int) -> Imagination:
        """With the latents that the branch's own encoder makes now, where it has one: it changes from step to step."""
        if self.branch.own_encoders is None:
            return imagination
        return replace(imagination, seen_BMD=self.branch.see(imagination.seen_BMD, batch.observation.step(k - _SEEN)))


def _outcome(quantities_YQ: Tensor) -> Tensor:
    """The `OUTCOMES` among the quantities."""
    return torch.cat([quantities_YQ[:, : len(CONSEQUENCES)], quantities_YQ[:, -len(REALISED) :]], dim=-1)
