"""The td branch of a world model: TD-JEPA with the networks of portfolios, and what it needs to find the task of a utility.

Shapes: Y portfolios, O outcomes, Z task features, R next states that are kept, Q quantities, U utilities.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

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
_COLLINEAR = 1e-6  # share of the largest singular value below which one is rounding
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

    @torch.no_grad()
    def standardise(self, rewards: Sequence[Reward], s: PolicyState, quantities: Mapping[str, Tensor]) -> None:
        """Fix the mean and the spread of the tasks that the policy sees, at those of usual rewards."""
        tasks = infer_tasks(rewards, self.algorithm.task_encoder(s), quantities)
        direction_UZ = torch.stack([task.direction_Z for task in tasks])
        actor = cast(PortfolioActor, self.algorithm.actor)
        actor.mean_Z.copy_(direction_UZ.mean(0))
        actor.scale_Z.copy_(direction_UZ.std(0).clamp(min=1e-3))

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
    unit: float  # of reward, by which it changes with psi'z
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


def reward_of(reward: Reward, quantities: Mapping[str, Tensor]) -> Tensor:
    """reward_X of a step. Limits of a utility are charged by their excess: the branch keeps them on balance, no decision is held
    to them."""
    reward_X = reward(quantities)
    for excess_X in reward.excess(quantities).values() if isinstance(reward, Utility) else ():
        reward_X = reward_X - _LIMIT_PRICE * excess_X
    return reward_X


def infer_task(reward: Reward, features_RZ: Tensor, quantities: Mapping[str, Tensor]) -> Task:
    """The task of one reward; see `infer_tasks`."""
    return infer_tasks([reward], features_RZ, quantities)[0]


def infer_tasks(rewards: Sequence[Reward], features_RZ: Tensor, quantities: Mapping[str, Tensor]) -> list[Task]:
    """Ridge regression with a free constant, which no decision depends on; a reward that is psi'w gives w, up to its length.

    The penalty is that of weights and errors whose variances are in the ratio of what the features express and leave.

    Raises:
        FinJEPAError: if a reward cannot be computed of these quantities, is not finite, or is the same everywhere.
    """
    columns = []
    for reward in rewards:
        if isinstance(reward, Utility) and (unknown := sorted(reward.names - quantities.keys())):
            raise FinJEPAError(
                f"unknown to the td branch: {', '.join(unknown)}; it has {', '.join(sorted(quantities))}"
            )
        reward_R = reward_of(reward, quantities).to(features_RZ.dtype)
        if reward_R.shape != features_RZ.shape[:1] or not torch.isfinite(reward_R).all():
            raise FinJEPAError("a utility must give one finite number for each step")
        columns.append((reward_R - reward_R.mean()).double())
        if float(columns[-1].abs().max()) <= 1e-12 * max(float(reward_R.abs().max()), 1e-12):
            raise FinJEPAError("this utility is the same whatever is done, so nothing follows from it")
    centred_RU, centred_RZ = torch.stack(columns, dim=-1), (features_RZ - features_RZ.mean(0)).double()
    # by the singular values, for features may be collinear
    left_RZ, size_Z, right_ZZ = torch.linalg.svd(centred_RZ, full_matrices=False)
    part_ZU, size_Z1 = left_RZ.T @ centred_RU, size_Z.unsqueeze(-1)
    part_ZU = torch.where(size_Z1 > _COLLINEAR * size_Z[0], part_ZU, 0.0)
    total_U = centred_RU.square().sum(0)
    explained_U = (part_ZU.square().sum(0) / total_U).clamp(1e-6, 1.0)
    # noise over signal: a reward that is expressed exactly is not shrunk, another one not led by nearly collinear features
    ridge_U = len(size_Z) * (1 - explained_U) / explained_U
    solution_ZU = right_ZZ.T @ (part_ZU * size_Z1 / (size_Z1.square() + ridge_U).clamp(min=1e-300))
    fit_U = 1 - (centred_RU - centred_RZ @ solution_ZU).square().sum(0) / total_U
    unit_U = solution_ZU.norm(dim=0) / len(solution_ZU) ** 0.5
    direction_UZ = to_sphere(solution_ZU.T).to(features_RZ.dtype)
    return [Task(*one) for one in zip(direction_UZ, unit_U.tolist(), fit_U.tolist(), strict=True)]
