"""TD-JEPA: latent prediction over the whole future of every policy at once, so that a task can be named afterwards.

Bagatella, Pirotta, Touati, Lazaric and Tirinzoni, "TD-JEPA", 2510.00739; written from its equations.

A state s has a state latent phi(s) and task features psi(s). For the policy pi_z of a task z the predictor T gives
successor features, T(phi(s), a, z) = E sum_t gamma^t psi(s_t+1), learned by temporal differences and without a reward. A
reward r(s') = psi(s')'w then has the value T'w under every pi_z, and pi_z, which maximises T'z, is the answer to z = w. A second
predictor from psi to phi teaches the task features what matters in the long run.

This file is the algorithm. What states, actions and networks are, the parts decide: `networks` has those of portfolios, the tests
those of a table.

Shapes: Y samples, D task features, P state features, K members of an ensemble.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from finjepa_model.config import TDConfig


class TDJEPA(nn.Module):
    """The networks, their slow copies, and one update of them (paper, algorithm 1). States and actions are whatever these
    understand.

    Args:
        state_encoder: state -> state_YP.
        task_encoder: state -> task features_YD.
        predictor: (state, state_YP, action, task_YD) -> successor features of psi, [K, Y, D].
        back_predictor: (state, features_YD, action, task_YD) -> successor features of phi, [K, Y, P].
        actor: (state, state_YP, task_YD, sample) -> an action, through which gradients flow; its mode where it is not a sample.
        discount: gamma of one decision step.
    """

    def __init__(
        self,
        state_encoder: nn.Module,
        task_encoder: nn.Module,
        predictor: nn.Module,
        back_predictor: nn.Module,
        actor: nn.Module,
        config: TDConfig,
        discount: float,
    ):
        super().__init__()
        self.config, self.discount = config, discount
        self.task_encoder, self.predictor, self.actor = task_encoder, predictor, actor
        learned = {"task_encoder": task_encoder, "predictor": predictor}
        learned |= {"state_encoder": state_encoder, "back_predictor": back_predictor}
        self.targets = nn.ModuleDict({name: copy.deepcopy(net).requires_grad_(False) for name, net in learned.items()})
        self.state_encoder, self.back_predictor = state_encoder, back_predictor

    @torch.no_grad()
    def act(self, state: Any, task_YD: Tensor) -> Any:
        """The decision of pi_z: no search, no sampling."""
        return self.actor(state, self.state_encoder(state), task_YD, sample=False)

    def losses(self, before: Any, action: Any, after: Any) -> dict[str, Tensor]:
        """Every term of one update on transitions without rewards, and their weighted sum under "loss".

        The gradient of each term reaches what it should: both encoders and predictors learn from the two prediction terms and
        the orthonormality, the actor alone from its own.
        """
        state_YP, features_YD = self.state_encoder(before), self.task_encoder(before)
        with torch.no_grad():
            next_features_YD = self.targets["task_encoder"](after)
            next_state_YP = self.targets["state_encoder"](after)
            task_YD = self.draw_tasks(next_features_YD)
            next_action = self.actor(after, next_state_YP, task_YD)
            ahead_YD = self.targets["predictor"](after, next_state_YP, next_action, task_YD).mean(0)
            back_YP = self.targets["back_predictor"](after, next_features_YD, next_action, task_YD).mean(0)
            target_YD = next_features_YD + self.discount * ahead_YD
            back_target_YP = next_state_YP + self.discount * back_YP
        terms = {
            "prediction": _error(self.predictor(before, state_YP, action, task_YD), target_YD),
            "task_orthonormality": orthonormality(features_YD),
            "back_prediction": _error(self.back_predictor(before, features_YD, action, task_YD), back_target_YP),
            "state_orthonormality": orthonormality(state_YP),
        }
        if self.config.actor:
            terms["actor"] = self._actor_loss(before, state_YP.detach(), task_YD)
        terms["loss"] = torch.stack([getattr(self.config, name, 1.0) * value for name, value in terms.items()]).sum()
        return terms

    def draw_tasks(self, features_YD: Tensor) -> Tensor:
        """Tasks to learn for: directions of the sphere of radius sqrt(D), and features of states that were reached, in another
        order: task_YD."""
        goals_YD = features_YD[torch.randperm(len(features_YD), device=features_YD.device)]
        is_goal_Y1 = torch.rand(len(features_YD), 1, device=features_YD.device) < self.config.goal_ratio
        return to_sphere(torch.where(is_goal_Y1, goals_YD, torch.randn_like(features_YD)))

    @torch.no_grad()
    def update_targets(self) -> None:
        """Polyak averaging of the slow copies."""
        for name, target in self.targets.items():
            for slow, fast in zip(target.parameters(), getattr(self, name).parameters(), strict=True):
                slow.lerp_(fast, self.config.target_rate)

    def _actor_loss(self, state: Any, state_YP: Tensor, task_YD: Tensor) -> Tensor:
        """Minus the value of the actor's action, in units of its own size."""
        with _without_gradient(self.predictor):
            action = self.actor(state, state_YP, task_YD)
            value_Y = (self.predictor(state, state_YP, action, task_YD).mean(0) * task_YD).sum(-1)
        return -value_Y.mean() / value_Y.detach().abs().mean().clamp(min=1e-6)


def to_sphere(vectors_XD: Tensor) -> Tensor:
    """Vectors of length sqrt(D)."""
    return vectors_XD.shape[-1] ** 0.5 * nn.functional.normalize(vectors_XD, dim=-1)


def orthonormality(features_YD: Tensor) -> Tensor:
    """1/2 mean over pairs i != j of (e_i'e_j)^2 - mean |e_i|^2: up to a constant and sampling, the squared distance of the
    second moment to the identity."""
    gram_YY = features_YD @ features_YD.T
    diagonal_Y = gram_YY.diagonal()
    pairs = len(features_YD) * (len(features_YD) - 1)
    return 0.5 * (gram_YY.square().sum() - diagonal_Y.square().sum()) / pairs - diagonal_Y.mean()


def _error(predicted_KYD: Tensor, target_YD: Tensor) -> Tensor:
    """Squared error, summed over features, mean over samples and members."""
    return (predicted_KYD - target_YD).square().sum(-1).mean()


@contextlib.contextmanager
def _without_gradient(module: nn.Module) -> Iterator[None]:
    """What is computed inside has no gradient with respect to the module's parameters, but one through its inputs."""
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
