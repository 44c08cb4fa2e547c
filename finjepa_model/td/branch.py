"""The td branch of a world model: TD-JEPA with the networks of portfolios, and what it needs to find the task of a utility.

Shapes: Y portfolios, O outcomes, Z task features, R next states that are kept, Q quantities.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from finjepa_model.actions import PortfolioAction
from finjepa_model.config import FinJEPAConfig
from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.objective import PlanningWorld
from finjepa_model.planning.utility import Utility
from finjepa_model.td.algorithm import TDJEPA, to_sphere
from finjepa_model.td.networks import (
    OUTCOMES,
    QUANTITY_NAMES,
    OutcomeFeatures,
    PolicyState,
    PortfolioActor,
    StateEncoder,
    SuccessorPredictor,
    TaskEncoder,
)

if TYPE_CHECKING:
    from finjepa_model.world_model import Imagination

# A utility, or any function of the quantities of a step (value_R by name) to its rewards, reward_R
Reward = Utility | Callable[[Mapping[str, Tensor]], Tensor]

GOOD_FIT = 0.9
_LIMIT_PRICE = 1.0  # of a unit of excess over a limit; growth of a step is of the order of 0.01


class TDBranch(nn.Module):
    """Acts on a utility without a search."""

    kept_RZ: Tensor
    kept_RQ: Tensor

    def __init__(self, config: FinJEPAConfig):
        super().__init__()
        td, width = config.td, config.model.dim
        if td.task_dim <= len(OUTCOMES):
            raise FinJEPAError(f"config key td.task_dim must be more than the {len(OUTCOMES)} outcomes of a step")
        outcomes = OutcomeFeatures()
        self.algorithm = TDJEPA(
            StateEncoder(width, td.state_dim, td.hidden),
            TaskEncoder(outcomes, width, td.task_dim, td.hidden),
            SuccessorPredictor(outcomes, width, td.state_dim, td.task_dim, td, back=False),
            SuccessorPredictor(outcomes, width, td.task_dim, td.state_dim, td, back=True),
            PortfolioActor(width, td.state_dim, td.task_dim, td, config.portfolio),
            td,
            td.discount**config.model.stride,
        )
        self.register_buffer("kept_RZ", torch.zeros(td.kept_states, td.task_dim))
        self.register_buffer("kept_RQ", torch.zeros(td.kept_states, len(QUANTITY_NAMES)))

    @torch.no_grad()
    def calibrate(self, outcome_YO: Tensor) -> None:
        """Fix the features that are made of outcomes, in the networks and their slow copies."""
        encoder = self.algorithm.task_encoder
        assert isinstance(encoder, TaskEncoder)
        encoder.outcomes.calibrate(outcome_YO)
        for name, target in self.algorithm.targets.items():
            target.load_state_dict(getattr(self.algorithm, name).state_dict())

    @property
    def quantities(self) -> Mapping[str, Tensor]:
        """The quantities of a reward on the kept next states: value_R by name."""
        return dict(zip(QUANTITY_NAMES, self.kept_RQ.unbind(-1), strict=True))

    def infer(self, reward: Reward) -> "Task":
        """The task of a utility, a parsed text or any function of the quantities of a step.

        Raises:
            FinJEPAError: if the branch has not been trained, or the reward cannot be computed.
        """
        if not self.kept_RZ.any():
            raise FinJEPAError(
                "the td branch of this checkpoint has not been trained; run `finjepa train --branch jepa,td`"
            )
        return infer_task(reward, self.kept_RZ, self.quantities)

    @torch.no_grad()
    def decide(self, imagination: "Imagination", world: PlanningWorld, task: "Task") -> PortfolioAction:
        """One forward pass: the action of each portfolio of the world, [B]."""
        state = PolicyState.of(imagination, world)
        task_YZ = task.direction_Z.to(state.market_YD).expand(len(state.market_YD), -1)
        return self.algorithm.act(state, task_YZ)


@dataclass(frozen=True)
class Task:
    """A utility as a direction of the task features."""

    direction_Z: Tensor  # the task vector z, of length sqrt(Z)
    fit: float  # R2 of the reward on the task features; 1 is a utility that the branch can express exactly

    @property
    def advice(self) -> str | None:
        """What to do about a low fit; None where it is good."""
        if self.fit >= GOOD_FIT:
            return None
        return (
            f"the task features explain only {max(self.fit, 0):.0%} of this utility (R2 {self.fit:.2f}), so the td branch "
            "acts on a rough approximation of it: use sums of quantities rather than above(), abs() or products, widen "
            "td.task_dim and train again, or plan with --planner mppi"
        )


def infer_task(reward: Reward, features_RZ: Tensor, quantities: Mapping[str, Tensor]) -> Task:
    """Least squares with a free constant, which no decision depends on; a reward that is psi'w gives w, up to its length.

    Limits of a utility are charged by their excess: the branch keeps them on balance, no decision is held to them.

    Raises:
        FinJEPAError: if the reward cannot be computed of these quantities, is not finite, or is the same everywhere.
    """
    if isinstance(reward, Utility) and (unknown := sorted(reward.names - quantities.keys())):
        raise FinJEPAError(f"unknown to the td branch: {', '.join(unknown)}; it has {', '.join(sorted(quantities))}")
    reward_R = reward(quantities)
    for excess_R in reward.excess(quantities).values() if isinstance(reward, Utility) else ():
        reward_R = reward_R - _LIMIT_PRICE * excess_R
    reward_R = reward_R.to(features_RZ.dtype)
    if reward_R.shape != features_RZ.shape[:1] or not torch.isfinite(reward_R).all():
        raise FinJEPAError("a utility must give one finite number for each step")
    centred_R = (reward_R - reward_R.mean()).double()
    if float(centred_R.abs().max()) <= 1e-12 * max(float(reward_R.abs().max()), 1e-12):
        raise FinJEPAError("this utility is the same whatever is done, so nothing follows from it")
    centred_RZ = (features_RZ - features_RZ.mean(0)).double()
    # by the singular values, for features may be collinear
    solution_Z = torch.linalg.lstsq(centred_RZ, centred_R.unsqueeze(-1), rcond=1e-6, driver="gelsd").solution[:, 0]
    residual_R = centred_R - centred_RZ @ solution_Z
    fit = 1 - float(residual_R.square().sum() / centred_R.square().sum())
    return Task(to_sphere(solution_Z).to(features_RZ.dtype), fit)
