"""The zero-shot branch of a world model: TD-JEPA with the networks of portfolios, and what it needs to infer rewards.

Shapes: Y portfolios, N assets, D width of the world model, Z task features, O outcomes, R relabelled next states,
Q quantities.
"""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import FinJEPAConfig
from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.rollout import PlanningWorld
from finjepa_model.td_jepa import TDJEPA, Parts
from finjepa_model.zero_shot.actor import PortfolioActor
from finjepa_model.zero_shot.networks import OutcomeFeatures, StateEncoder, SuccessorPredictor, TaskEncoder
from finjepa_model.zero_shot.reward import Reward, Task, infer_task
from finjepa_model.zero_shot.situation import OUTCOMES, QUANTITY_NAMES, Situation

if TYPE_CHECKING:
    from finjepa_model.encoder import ContextEncoder, PortfolioEncoder
    from finjepa_model.observation import Observation
    from finjepa_model.world_model import Imagination


class ZeroShot(nn.Module):
    """Give it a utility; it acts on it at once.

    Args:
        encoder, portfolio_encoder: of the world model. They are used as they are, or copied where the branch trains its own.
    """

    relabelled_RZ: Tensor
    relabelled_RQ: Tensor

    def __init__(self, config: FinJEPAConfig, encoder: "ContextEncoder", portfolio_encoder: "PortfolioEncoder"):
        super().__init__()
        td, width = config.td, config.model.dim
        if td.task_dim <= len(OUTCOMES):
            raise FinJEPAError(f"config key td.task_dim must be more than the {len(OUTCOMES)} outcomes of a step")
        self.own_encoders = (
            nn.ModuleDict({"market": copy.deepcopy(encoder), "portfolio": copy.deepcopy(portfolio_encoder)})
            if td.fine_tune
            else None
        )
        outcomes = OutcomeFeatures()
        state_dim = td.task_dim if td.symmetric else td.state_dim
        predictor = SuccessorPredictor(outcomes, width, state_dim, td.task_dim, td.task_dim, td, True)
        task_encoder = TaskEncoder(outcomes, width, td.task_dim, td.hidden)
        parts = Parts(
            state_encoder=None if td.symmetric else StateEncoder(width, td.state_dim, td.hidden),
            task_encoder=task_encoder,
            prior=task_encoder.draw_sums,
            predictor=predictor,
            back_predictor=None
            if td.symmetric
            else SuccessorPredictor(outcomes, width, td.task_dim, td.task_dim, td.state_dim, td, False),
            actor=PortfolioActor(outcomes, width, state_dim, td.task_dim, td, config.portfolio),
        )
        self.algorithm = TDJEPA(parts, td, td.discount**config.model.stride)
        self.register_buffer("relabelled_RZ", torch.zeros(td.relabelled, td.task_dim))
        self.register_buffer("relabelled_RQ", torch.zeros(td.relabelled, len(QUANTITY_NAMES)))

    def adopt(self, encoder: nn.Module, portfolio_encoder: nn.Module) -> None:
        """Begin fine-tuning from what the world model has learned."""
        if self.own_encoders is not None:
            self.own_encoders["market"].load_state_dict(encoder.state_dict())
            self.own_encoders["portfolio"].load_state_dict(portfolio_encoder.state_dict())

    @torch.no_grad()
    def calibrate(self, outcome_YO: Tensor) -> None:
        """Fix the features that are made of outcomes."""
        encoder = self.algorithm.task_encoder
        assert isinstance(encoder, TaskEncoder)
        encoder.outcomes.calibrate(outcome_YO)
        for name, target in self.algorithm.targets.items():
            target.load_state_dict(getattr(self.algorithm, name).state_dict())

    def see(self, tokens_BMD: Tensor, observation: "Observation") -> Tensor:
        """Latents of the assets and, last, of the market at the last step of an observation: the world model's, or those of
        the branch's own encoder."""
        if self.own_encoders is None:
            return tokens_BMD
        last = (x[:, -1] for x in (observation.features_BSNTF, observation.observed_BSNT, observation.market_BSTQ))
        assets_BND, market_BD = self.own_encoders["market"](*last, observation.present_BN)
        return torch.cat([assets_BND, market_BD.unsqueeze(1)], dim=1)

    def situation(
        self, imagination: "Imagination", world: PlanningWorld, outcome_YO: Tensor | None = None
    ) -> Situation:
        """Where the portfolios of the world stand."""
        own = self.own_encoders
        encoder = imagination.model.portfolio_encoder if own is None else own["portfolio"]
        with torch.set_grad_enabled(own is not None and torch.is_grad_enabled()):
            return Situation.of(imagination, world, encoder, outcome_YO)

    def remember(self, features_RZ: Tensor, quantities_RQ: Tensor) -> None:
        """Keep next states to infer rewards on."""
        self.relabelled_RZ.copy_(features_RZ)
        self.relabelled_RQ.copy_(quantities_RQ)

    @property
    def quantities(self) -> Mapping[str, Tensor]:
        """What a reward may speak of, on the kept next states: value_R by name."""
        return dict(zip(QUANTITY_NAMES, self.relabelled_RQ.unbind(-1), strict=True))

    def infer(self, reward: Reward) -> Task:
        """The task of a utility, a parsed text or any function of the quantities of a step.

        Raises:
            FinJEPAError: if the branch has not been trained, or the reward cannot be computed.
        """
        if not self.relabelled_RZ.any():
            raise FinJEPAError(
                "the td branch of this checkpoint has not been trained; run `finjepa train --branch jepa,td`"
            )
        return infer_task(reward, self.relabelled_RZ, self.quantities)

    @torch.no_grad()
    def decide(self, imagination: "Imagination", world: PlanningWorld, task: Task) -> PortfolioAction:
        """One forward pass: the action of each portfolio of the world, [B]."""
        situation = self.situation(imagination, world)
        task_YZ = task.direction_Z.to(situation.market_YD).expand(len(situation.market_YD), -1)
        return self.algorithm.act(situation, task_YZ)
