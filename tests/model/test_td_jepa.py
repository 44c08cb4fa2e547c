"""The algorithm of TD-JEPA on a table whose truth is known: successor features, optimal policies for rewards named later."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from finjepa_model.config import TDConfig
from finjepa_model.errors import FinJEPAError
from finjepa_model.planning.utility import parse_utility
from finjepa_model.td.algorithm import TDJEPA, orthonormality, to_sphere
from finjepa_model.td.branch import infer_task

STATES, ACTIONS, DISCOUNT = 6, 2, 0.9


class OneHot(nn.Module):
    def __init__(self, states: int = STATES):
        super().__init__()
        self.states = states

    def forward(self, state_Y: Tensor) -> Tensor:
        return F.one_hot(state_Y, self.states).float()


def _network(inputs: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, out))


class TablePredictor(nn.Module):
    """A network of the task for each state and action."""

    def __init__(self, members: int = 2, states: int = STATES, out: int = STATES):
        super().__init__()
        self.heads = nn.ModuleList(_network(states * ACTIONS + out, out) for _ in range(members))

    def forward(self, state_Y: Tensor, state_YP: Tensor, action_YA: Tensor, task_YD: Tensor) -> Tensor:
        pair_YQ = (state_YP.unsqueeze(-1) * action_YA.unsqueeze(-2)).flatten(1)
        return torch.stack([head(torch.cat([pair_YQ, task_YD], -1)) for head in self.heads])


class TableActor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = _network(2 * STATES, ACTIONS)

    def forward(self, state_Y: Tensor, state_YP: Tensor, task_YD: Tensor, sample: bool = True) -> Tensor:
        logits_YA = self.net(torch.cat([state_YP, task_YD], -1))
        if sample:
            return F.gumbel_softmax(logits_YA, 1.0, hard=True)
        return F.one_hot(logits_YA.argmax(-1), ACTIONS).float()


class Always(nn.Module):
    """A policy that does not learn."""

    def __init__(self, policy_SA: Tensor):
        super().__init__()
        self.policy_SA = policy_SA
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, state_Y: Tensor, state_YP: Tensor, task_YD: Tensor, sample: bool = True) -> Tensor:
        return F.one_hot(torch.multinomial(self.policy_SA[state_Y], 1)[:, 0], ACTIONS) + 0 * self.nothing


class Nothing(nn.Module):
    """A predictor of state features, where nobody asks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1, 1, 1))

    def forward(self, *_: Tensor) -> Tensor:
        return self.nothing


def _markov(seed: int) -> Tensor:
    """Transition probabilities [S, A, S], each action leading mostly to a state of its own."""
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(STATES, ACTIONS, STATES, generator=generator)).softmax(-1)


def _config(**changes) -> TDConfig:
    return replace(TDConfig(task_dim=STATES, state_dim=STATES, target_rate=0.05, actor=1.0), **changes)


def _learn(algorithm: TDJEPA, chances_SAS: Tensor, steps: int, rate: float = 2e-3, batch: int = 256) -> None:
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, 2 * (1 - step / steps))
        before_Y, action_Y = torch.randint(len(chances_SAS), (batch,)), torch.randint(ACTIONS, (batch,))
        after_Y = torch.multinomial(chances_SAS[before_Y, action_Y], 1)[:, 0]
        loss = algorithm.losses(before_Y, F.one_hot(action_Y, ACTIONS).float(), after_Y)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        algorithm.update_targets()


def _value(chances_SAS: Tensor, reward_S: Tensor, policy_S: Tensor) -> Tensor:
    """Exact value of a policy, where the reward is that of the next state."""
    moves_SS = chances_SAS[torch.arange(STATES), policy_S].double()
    return torch.linalg.solve(torch.eye(STATES).double() - DISCOUNT * moves_SS, moves_SS @ reward_S.double())


def _best(chances_SAS: Tensor, reward_S: Tensor) -> Tensor:
    """Policy of value iteration."""
    value_S = torch.zeros(STATES, dtype=torch.double)
    for _ in range(500):
        gain_SA = chances_SAS.double() @ (reward_S.double() + DISCOUNT * value_S)
        value_S = gain_SA.amax(-1)
    return gain_SA.argmax(-1)


def test_the_predictor_learns_the_successor_features_of_a_policy():
    """Check 21: F = P (I - gamma P)^-1 within 1e-2 of its size, rows that sum to 1 / (1 - gamma), and the values of any reward.

    Transitions are certain here, so that sampling leaves no noise.
    """
    torch.manual_seed(0)
    chances_SAS = F.one_hot(torch.randint(STATES, (STATES, ACTIONS)), STATES).float()
    policy_S = torch.randint(ACTIONS, (STATES,))
    always = Always(F.one_hot(policy_S, ACTIONS).float())
    algorithm = TDJEPA(OneHot(), OneHot(), TablePredictor(members=1), Nothing(), always, _config(), DISCOUNT)
    _learn(algorithm, chances_SAS, 1500, rate=5e-3, batch=64)

    states_Y = torch.arange(STATES)
    moves_SS = chances_SAS[states_Y, policy_S]
    truth_SD = torch.linalg.solve(torch.eye(STATES) - DISCOUNT * moves_SS, moves_SS)
    taken_YA = F.one_hot(policy_S, ACTIONS).float()
    with torch.no_grad():
        task_SD = to_sphere(torch.randn(STATES, STATES))
        found_SD = algorithm.predictor(states_Y, OneHot()(states_Y), taken_YA, task_SD)[0]
    assert (found_SD - truth_SD).abs().max() < 1e-2 * 10
    torch.testing.assert_close(found_SD.sum(-1), torch.full((STATES,), 10.0), rtol=0.01, atol=0)
    reward_S = torch.rand(STATES)
    torch.testing.assert_close(
        found_SD @ reward_S, _value(chances_SAS, reward_S, policy_S).float(), rtol=0.02, atol=0.02
    )


def test_ten_rewards_named_after_training_are_solved_as_by_value_iteration():
    """The rewards are random directions, and so are the tasks that are learned for."""
    torch.manual_seed(1)
    chances_SAS = _markov(1)
    networks = (OneHot(), OneHot(), TablePredictor(members=1), TablePredictor(members=1), TableActor())
    algorithm = TDJEPA(*networks, _config(goal_ratio=0.0), DISCOUNT)
    _learn(algorithm, chances_SAS, 500, rate=6e-3, batch=192)
    states_Y, gaps = torch.arange(STATES), []
    for seed in range(10):
        reward_S = torch.rand(STATES, generator=torch.Generator().manual_seed(100 + seed))
        task = infer_task(lambda values: values["reward"], OneHot()(states_Y), {"reward": reward_S})
        assert task.fit == pytest.approx(1.0)
        policy_S = algorithm.act(states_Y, task.direction_Z.expand(STATES, -1)).argmax(-1)
        best = float(_value(chances_SAS, reward_S, _best(chances_SAS, reward_S)).mean())
        gaps.append(1 - float(_value(chances_SAS, reward_S, policy_S).mean()) / best)
    assert max(gaps) < 0.01, gaps


def test_orthonormality_is_the_known_number_and_pushes_the_covariance_to_the_identity():
    """Check 22."""
    torch.manual_seed(0)
    assert float(orthonormality(to_sphere(torch.randn(8, 4)))) == pytest.approx(-1.5104780, abs=1e-6)
    inputs_YD = torch.randn(256, 4) * torch.tensor([0.2, 0.5, 1.0, 3.0])
    mix = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.Adam(mix.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        orthonormality(mix(inputs_YD)).backward()
        optimizer.step()
    features_YD = mix(inputs_YD)
    torch.testing.assert_close(features_YD.T @ features_YD / 256, torch.eye(4), atol=0.05, rtol=0)


def test_a_linear_reward_gives_back_its_weights_and_one_that_no_feature_expresses_comes_with_advice():
    """Check 23, up to the length, which no decision depends on."""
    torch.manual_seed(2)
    features_RZ, weights_Z = torch.randn(4000, 8), torch.randn(8)
    task = infer_task(lambda values: values["reward"], features_RZ, {"reward": features_RZ @ weights_Z + 3.0})
    assert float(F.cosine_similarity(task.direction_Z, weights_Z, dim=0)) == pytest.approx(1.0, abs=1e-6)
    assert float(task.direction_Z.norm()) == pytest.approx(8**0.5, rel=1e-5)
    assert task.fit == pytest.approx(1.0)
    assert task.advice is None
    task = infer_task(lambda values: values["reward"], features_RZ, {"reward": torch.randn(4000)})
    assert task.fit < 0.05
    assert task.advice is not None
    assert "--planner" in task.advice


def test_utilities_that_make_no_sense_are_refused_in_one_line():
    features_RZ, values = torch.randn(50, 4), {"log_growth": torch.randn(50), "variance": torch.ones(50)}
    with pytest.raises(FinJEPAError, match="unknown to the td branch: goal_distance"):
        infer_task(parse_utility("log_growth - goal_distance"), features_RZ, values)
    with pytest.raises(FinJEPAError, match="the same whatever"):
        infer_task(parse_utility("2*variance"), features_RZ, values)
    with pytest.raises(FinJEPAError, match="finite number"):
        infer_task(lambda values: values["variance"] / 0, features_RZ, values)


def test_each_term_reaches_the_networks_that_it_should():
    torch.manual_seed(4)
    phi, psi = (nn.Sequential(OneHot(), nn.Linear(STATES, STATES)) for _ in range(2))
    algorithm = TDJEPA(phi, psi, TablePredictor(), TablePredictor(), TableActor(), _config(), DISCOUNT)
    before_Y, after_Y, action_YA = *torch.randint(STATES, (2, 32)), torch.eye(2)[torch.arange(32) % 2]

    def reached(name: str) -> set[str]:
        algorithm.zero_grad()
        algorithm.losses(before_Y, action_YA, after_Y)[name].backward()
        return {key.split(".")[0] for key, p in algorithm.named_parameters() if p.grad is not None and p.grad.any()}

    assert reached("prediction") == {"state_encoder", "predictor"}
    assert reached("back_prediction") == {"task_encoder", "back_predictor"}
    assert reached("actor") == {"actor"}
    assert reached("task_orthonormality") == {"task_encoder"}
    assert reached("loss") == {"state_encoder", "task_encoder", "predictor", "back_predictor", "actor"}
