"""Trains the td branch of a world model: market paths from the panel, portfolios and actions drawn on the device.

A step is a function of the seed and its number, so training resumes to the bit. Every so often the policy is scored on the
validation block, the first time before the first step, and the best one is what is left of training. Transitions have no rewards;
the market of a batch is encoded once for many portfolios, since it does not depend on them.

Shapes: B decision dates, C portfolios on each, Y = B x C, R next states that are kept, O outcomes, Q quantities, Z task
features.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from finjepa_model.actions import PortfolioAction
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import split_dates
from finjepa_model.errors import FinJEPAError
from finjepa_model.portfolio import PortfolioState
from finjepa_model.td.branch import TDBranch, infer_task
from finjepa_model.td.networks import CONSEQUENCES, EXPECTED, OUTCOMES, REALISED, PolicyState, realised
from finjepa_model.td.rollouts import (
    PORTFOLIOS,
    MarketPath,
    MarketPaths,
    Rollout,
    Transition,
    gain,
    lead,
    policy_loss,
    random_utility,
)
from finjepa_model.training import run_folder as files
from finjepa_model.training.behaviour import random_action
from finjepa_model.training.trainer import Report, TrainingInterruptedError, falling, seed_of
from finjepa_model.world_model import WorldModel

TD_FOLDER = "td"  # in the run folder of the world model
_STREAM = 76  # of random numbers, apart from those of the world model's training
_ACTED = 0.5  # share of actions that are the actor's own, so that its values are learned where they are used


def draw_transition(path: MarketPath, branch: TDBranch) -> Transition:
    """A transition of every portfolio of a path; what is random in it comes from torch's global generator."""
    leading, led_by = lead(path)
    led_by = _some_are_acted(branch, leading, led_by)
    portfolio, quantities_YQ = _hold(path, 0, leading, led_by)
    before = path.state(1, portfolio, _outcome(quantities_YQ))
    action = _some_are_acted(branch, before, random_action(before.present_YN, led_by, path.simulator.config))
    portfolio, quantities_YQ = _hold(path, 1, before, action)
    return Transition(before, action, path.state(2, portfolio, _outcome(quantities_YQ)), quantities_YQ)


@torch.no_grad()
def _some_are_acted(branch: TDBranch, s: PolicyState, other: PortfolioAction) -> PortfolioAction:
    """The actor's actions on random tasks in the place of some."""
    algorithm = branch.algorithm
    acted = algorithm.actor(s, algorithm.state_encoder(s), algorithm.draw_tasks(algorithm.task_encoder(s)))
    is_acted_Y = torch.rand(len(s.present_YN), device=s.present_YN.device) < _ACTED
    return acted.where(is_acted_Y, other)


@torch.no_grad()
def _hold(path: MarketPath, decision: int, s: PolicyState, action: PortfolioAction) -> tuple[PortfolioState, Tensor]:
    """Where an action has led, and the quantities_YQ of the step."""
    expected_YQ = s.quantities(action, EXPECTED)
    moved = path.hold(decision, s, action)
    return moved, torch.cat([expected_YQ, realised(s.world.state, moved)], dim=-1)


def _outcome(quantities_YQ: Tensor) -> Tensor:
    """The `OUTCOMES` among the quantities."""
    return torch.cat([quantities_YQ[:, : len(CONSEQUENCES)], quantities_YQ[:, -len(REALISED) :]], dim=-1)


_SHARES = (0.1, 1.0)  # of the learning rate: of predictions, whose targets move with them, and of the policy


def parameter_groups(branch: TDBranch) -> list[dict[str, Any]]:
    """Parameters of predictions, and those of the policy."""
    named = [(name.startswith("algorithm.actor."), p) for name, p in branch.named_parameters() if p.requires_grad]
    return [{"params": [p for is_policy, p in named if is_policy == wanted]} for wanted in (False, True)]


def backward(loss: Tensor, optimizer: torch.optim.Optimizer, rate: float, clip: float) -> Tensor:
    """Gradients, those of each group clipped by themselves, and its share of the rate; the sum of their norms before that."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for group, share in zip(optimizer.param_groups, _SHARES, strict=True):
        group["lr"] = share * rate
    return torch.stack([nn.utils.clip_grad_norm_(group["params"], clip) for group in optimizer.param_groups]).sum()


class TDTrainer:
    """Trains `model.td` and nothing else of the model.

    Args:
        model: a trained world model whose config has `td.enabled`.
        run_folder: the one of the world model's training.
        report: called with every record that goes to its `metrics.jsonl`.
    """

    def __init__(self, model: WorldModel, panel: Panel, run_folder: Path, report: Report | None = None):
        assert model.td is not None
        self.model, self.branch, self.config = model, model.td, model.config
        self.run_folder, self.report = run_folder / TD_FOLDER, report
        model.eval()
        self.device, self.panel = next(model.parameters()).device, panel
        td, block = self.config.td, split_dates(len(panel.dates), self.config).train
        self.paths = MarketPaths(model, panel, block, td.dates, td.portfolios)
        self.optimizer = torch.optim.Adam(parameter_groups(self.branch), lr=td.learning_rate)
        self.step, self.best = 0, files.Best()
        self.stop_requested = False

    def train(self) -> dict[str, Any]:
        """Train to the end, or until `td.patience` evaluations have brought nothing better; the branch is then the best one,
        and keeps next states to infer rewards on.

        Returns:
            What `metrics.json` has under "td".

        Raises:
            TrainingInterruptedError: after `stop_requested` was set; the state is saved.
            FinJEPAError: if the loss is no longer a number; the last good state is kept.
        """
        td, training, started = self.config.td, self.config.training, time.monotonic()
        terms: dict[str, Tensor] = {}
        score = self._begin()
        with tqdm(total=td.steps, initial=self.step, desc="td", unit="step", mininterval=0.5) as bar:
            while self.step < td.steps and not (0 < td.patience <= self.best.evaluations_since):
                terms = self.train_step()
                self.step += 1
                bar.update()
                last = self.step == td.steps
                if self.step % training.log_every == 0 or last:
                    self._record("td", {name: float(value) for name, value in terms.items()})
                if self.step % td.evaluate_every == 0 or last:
                    self._keep_if_best(score())
                if self.stop_requested:
                    self._save()
                    raise TrainingInterruptedError(f"training of td stopped at step {self.step} of {td.steps}")
                if self.step % training.checkpoint_every == 0 or last:
                    self._save()
        policy = files.load_best(self.run_folder, self.branch)
        self._keep_states()
        return self.evaluate() | {
            "policy": policy,
            "training": {name: float(value) for name, value in terms.items()},
            "steps": self.step,
            "seconds": round(time.monotonic() - started, 3),
        }

    def train_step(self) -> dict[str, Tensor]:
        """One step of the optimiser; returns every term of the loss."""
        torch.manual_seed(seed_of(self.config.training.seed, self.step, _STREAM))
        td, path = self.config.td, self.paths.draw(self.step // self.config.td.reuse)
        transition = draw_transition(path, self.branch)
        terms = self.branch.algorithm.losses(transition.before, transition.action, transition.after)
        if td.rollout:
            rollout = Rollout.draw(
                path.take(slice(None, None, max(len(path.rows_Y) // PORTFOLIOS, 1))), self.branch.algorithm.discount
            )
            terms["rollout"] = policy_loss(rollout, self.branch, transition)
            terms["loss"] = terms["loss"] + td.rollout * terms["rollout"]
        rate = falling(td.learning_rate, self.step, td.steps)
        norm = backward(terms["loss"], self.optimizer, rate, 10 * self.config.training.gradient_clip)
        if not torch.isfinite(norm):
            raise FinJEPAError(
                f"the loss of td is no longer a number at step {self.step}; the last good state is in {self.run_folder}: "
                "lower td.learning_rate"
            )
        self.optimizer.step()
        self.branch.algorithm.update_targets()
        return {name: value.detach() for name, value in terms.items()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Eigenvalues of the covariance of the task features, which show a collapse, and R2 of each outcome on them."""
        features_RZ, quantities = self.branch.kept_RZ, self.branch.quantities
        eigenvalues_Z = torch.linalg.eigvalsh(features_RZ.double().T.cov())
        share_Z = eigenvalues_Z.clamp(min=1e-12) / eigenvalues_Z.sum().clamp(min=1e-12)
        varying = [name for name in OUTCOMES if float(quantities[name].std()) > 0]
        return {
            "eigenvalues": eigenvalues_Z.flip(0).tolist(),
            "effective_rank": float(torch.exp(-(share_Z * share_Z.log()).sum())),
            "fit": {n: infer_task(lambda values, n=n: values[n], features_RZ, quantities).fit for n in varying},
        }

    @torch.no_grad()
    def _keep_states(self) -> None:
        """Next states of fresh portfolios, half of them led there by the actor."""
        drawn = self._draw(self.config.td.steps)
        features_RZ = torch.cat([self.branch.algorithm.task_encoder(transition.after) for transition in drawn])
        quantities_RQ = torch.cat([transition.quantities_YQ for transition in drawn])
        kept = slice(self.config.td.kept_states)
        self.branch.kept_RZ.copy_(features_RZ[kept])
        self.branch.kept_RQ.copy_(quantities_RQ[kept])

    def _draw(self, first_step: int) -> list[Transition]:
        """As many transitions as states are kept, or a few more, each batch on a market of its own."""
        td = self.config.td
        drawn = []
        for number in range(math.ceil(td.kept_states / (td.dates * td.portfolios))):
            torch.manual_seed(seed_of(self.config.training.seed, first_step + number, _STREAM))
            drawn.append(draw_transition(self.paths.draw(first_step + number), self.branch))
        return drawn

    def _keep_if_best(self, score: float) -> None:
        self._record("td_validation", {"score": score})
        if -score < self.best.loss:
            self.best = files.Best(-score, self.step)
            files.save_best(self.run_folder, self.branch, {"score": score, "step": self.step})
        else:
            self.best.evaluations_since += 1

    def _record(self, kind: str, values: dict[str, float]) -> None:
        record = {"kind": kind, "step": self.step, **values}
        files.append_record(self.run_folder, record)
        if self.report:
            self.report(record)

    def _save(self) -> None:
        files.save_state(self.run_folder, self.step, self.best, self.branch, self.optimizer)

    def _begin(self) -> "PolicyScore":
        """Go on where an interrupted run was, or begin with the units of the outcomes, in which tasks are inferred."""
        self.run_folder.mkdir(parents=True, exist_ok=True)
        self.step, self.best = files.load_state(self.run_folder, self.branch, self.optimizer)
        if self.step > 0:
            files.forget_after(self.run_folder, self.step)
            return PolicyScore(self.model, self.panel)
        files.forget_after(self.run_folder, -1)  # an earlier run that saved nothing
        drawn = self._draw(0)
        self.branch.calibrate(torch.cat([transition.after.outcome_YO for transition in drawn]))
        usual = [random_utility(self.config.portfolio) for _ in range(512)]
        self.branch.standardise(usual, drawn[0].after, drawn[0].quantities)
        score = PolicyScore(self.model, self.panel)
        self._keep_if_best(score())
        return score


_DATES, _PORTFOLIOS = 32, 8  # of a score
_SEED = 2011  # of its portfolios and utilities


class PolicyScore:
    """What the policy earns beyond never trading, by random utilities of random portfolios on fixed paths of the validation
    block, in units of its tasks; more is better. It is the same for the same policy.
    """

    def __init__(self, model: WorldModel, panel: Panel):
        """After the branch has been calibrated: tasks are in its units."""
        assert model.td is not None
        self._branch = model.td
        block = split_dates(len(panel.dates), model.config).validation
        path = MarketPaths(model, panel, block, _DATES, _PORTFOLIOS).draw(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            self._rollout = Rollout.draw(path, model.td.algorithm.discount)
            before, action = lead(path)
            portfolio, quantities_YQ = _hold(path, 0, before, action)
            after = path.state(1, portfolio, _outcome(quantities_YQ))
            self._steps = Transition(before, action, after, quantities_YQ)

    def __call__(self) -> float:
        return gain(self._rollout, self._branch, self._steps)
