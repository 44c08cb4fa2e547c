"""From a utility to a task: least squares of the reward on the task features of states that were reached.

Shapes: R relabelled next states, Z task features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.utility import Utility
from finjepa_model.td_jepa import to_sphere

# A utility, or any function of the quantities of a step (value_R by name) to its rewards, reward_R
Reward = Utility | Callable[[Mapping[str, Tensor]], Tensor]

GOOD_FIT = 0.9
_LIMIT_PRICE = 1.0  # of a unit of excess over a limit; growth of a step is of the order of 0.01


@dataclass(frozen=True)
class Task:
    """A utility in the language of the branch.

    Attributes:
        direction_Z: the task vector z, of length sqrt(Z).
        fit: R2 of the reward on the task features; 1 is a utility that the branch can express exactly.
    """

    direction_Z: Tensor
    fit: float

    @property
    def advice(self) -> str | None:
        """What to do about a low fit; None where it is good."""
        if self.fit >= GOOD_FIT:
            return None
        return (
            f"the task features explain only {max(self.fit, 0):.0%} of this utility (R2 {self.fit:.2f}), so the td branch "
            "acts on a rough likeness of it: use sums of quantities rather than above(), abs() or products, widen "
            "td.task_dim and train again, or plan with --planner mppi"
        )


def infer_task(reward: Reward, features_RZ: Tensor, quantities: Mapping[str, Tensor]) -> Task:
    """Least squares with a free constant, which no decision depends on; a reward that is psi'w gives w, up to its length.

    Limits of a utility are charged by their excess: the branch keeps them on balance, no decision is held to them.

    Raises:
        FinJEPAError: if the reward cannot be computed of these quantities, is not finite, or is the same everywhere.
    """
    reward_R = _relabel(reward, quantities).to(features_RZ.dtype)
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


def _relabel(reward: Reward, quantities: Mapping[str, Tensor]) -> Tensor:
    if not isinstance(reward, Utility):
        return reward(quantities)
    unknown = sorted(reward.names - quantities.keys())
    if unknown:
        raise FinJEPAError(f"the td branch knows no {', '.join(unknown)}; it knows {', '.join(sorted(quantities))}")
    total_R = reward(quantities)
    for excess_R in reward.excess(quantities).values():
        total_R = total_R - _LIMIT_PRICE * excess_R
    return total_R
