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
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from finjepa_model.config import TDConfig


class Actor(Protocol):
    def __call__(self, state: Any, state_YP: Tensor, task_YD: Tensor, sample: bool = True) -> Any:
        """An action, through which gradients flow; its mode where it is not a sample."""
        ...

    def imitation(self, action: Any, shown: Any) -> Tensor:
        """Squared distance between the actor's actions and the ones of the data, a scalar."""
        ...


@dataclass(frozen=True)
class Parts:
    """The networks, each an `nn.Module`. States and actions are whatever these understand.

    Attributes:
        state_encoder: state -> state_YP.
        task_encoder: state -> task features_YD.
        predictor: (state, state_YP, action, task_YD) -> successor features of psi, [K, Y, D].
        back_predictor: (state, features_YD, action, task_YD) -> successor features of phi, [K, Y, P]; None in the symmetric
            variant, where the task encoder is the state encoder as well.
        actor: see `Actor`.
    """

    state_encoder: nn.Module | None
    task_encoder: nn.Module
    predictor: nn.Module
    back_predictor: nn.Module | None
    actor: nn.Module


class TDJEPA(nn.Module):
    """The parts, their slow copies, and one update of them (paper, algorithm 1).

    Args:
        discount: gamma of one decision step.
    """

    def __init__(self, parts: Parts, config: TDConfig, discount: float):
        super().__init__()
        self.config, self.discount = config, discount
        self.symmetric = parts.state_encoder is None
        self.task_encoder, self.predictor, self.actor = parts.task_encoder, parts.predictor, parts.actor
        self.targets = nn.ModuleDict(
            {"task_encoder": _frozen(parts.task_encoder), "predictor": _frozen(parts.predictor)}
        )
        if parts.state_encoder is not None and parts.back_predictor is not None:
            self.state_encoder, self.back_predictor = parts.state_encoder, parts.back_predictor
            self.targets["state_encoder"] = _frozen(parts.state_encoder)
            self.targets["back_predictor"] = _frozen(parts.back_predictor)

    def encode(self, state: Any) -> Tensor:
        """state_YP."""
        return self.task_encoder(state) if self.symmetric else self.state_encoder(state)

    @torch.no_grad()
    def act(self, state: Any, task_YD: Tensor) -> Any:
        """The decision of pi_z: no search, no sampling."""
        return self.actor(state, self.encode(state), task_YD, sample=False)

    def losses(self, before: Any, action: Any, after: Any) -> dict[str, Tensor]:
        """Every term of one update on transitions without rewards, and their weighted sum under "loss".

        The gradient of each term reaches what it should: both encoders and predictors learn from the two prediction terms and
        the orthonormality, the actor alone from its own.
        """
        config = self.config
        state_YP, features_YD = self.encode(before), self.task_encoder(before)
        with torch.no_grad():
            next_features_YD = self.targets["task_encoder"](after)
            next_state_YP = next_features_YD if self.symmetric else self.targets["state_encoder"](after)
            task_YD = self.draw_tasks(next_features_YD)
            next_action = self.actor(after, next_state_YP, task_YD)
            ahead_YD = self.targets["predictor"](after, next_state_YP, next_action, task_YD).mean(0)
            target_YD = next_features_YD + self.discount * ahead_YD
        terms = {
            "prediction": _error(self.predictor(before, state_YP, action, task_YD), target_YD),
            "task_orthonormality": orthonormality(features_YD),
        }
        if not self.symmetric:
            with torch.no_grad():
                back_YP = self.targets["back_predictor"](after, next_features_YD, next_action, task_YD).mean(0)
                back_target_YP = next_state_YP + self.discount * back_YP
            terms["back_prediction"] = _error(self.back_predictor(before, features_YD, action, task_YD), back_target_YP)
            terms["state_orthonormality"] = orthonormality(state_YP)
        terms |= self._actor_terms(before, state_YP.detach(), task_YD, action)
        weights = {
            "task_orthonormality": config.task_orthonormality,
            "state_orthonormality": config.state_orthonormality,
            "imitation": config.behaviour_cloning,
            "value": 0.0,  # for the log
        }
        terms["loss"] = torch.stack([weights.get(name, 1.0) * value for name, value in terms.items()]).sum()
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

    def _actor_terms(self, state: Any, state_YP: Tensor, task_YD: Tensor, shown: Any) -> dict[str, Tensor]:
        with _without_gradient(self.predictor):
            action = self.actor(state, state_YP, task_YD)
            value_Y = (self.predictor(state, state_YP, action, task_YD).mean(0) * task_YD).sum(-1)
        # in units of its own size, so that the weight of imitation means the same for every task
        terms = {
            "value": value_Y.mean().detach(),
            "actor": -value_Y.mean() / value_Y.detach().abs().mean().clamp(min=1e-6),
        }
        if self.config.behaviour_cloning:
            terms["imitation"] = cast(Actor, self.actor).imitation(action, shown)
        return terms


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


def _frozen(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).requires_grad_(False)


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
