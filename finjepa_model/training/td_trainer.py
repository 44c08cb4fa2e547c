"""Trains the zero-shot branch of a world model: market paths from the panel, portfolios and actions drawn on the device.

A step is a function of the seed and its number, so training resumes to the bit. Every so often the policy is scored on the
validation block, the first time before the first step, and the best one is what is left of training.

Shapes: B decision dates, C portfolios on each, Y = B x C, R relabelled next states, O outcomes, Z task features.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from finjepa_model.config import FinJEPAConfig
from finjepa_model.errors import FinJEPAError
from finjepa_model.training.experience import Experience, Transition
from finjepa_model.training.panel import Panel
from finjepa_model.training.policy_score import PolicyScore
from finjepa_model.training.records import append_record, forget_after
from finjepa_model.training.schedule import falling
from finjepa_model.training.state import Best, load_best, load_state, save_best, save_state
from finjepa_model.training.trainer import Report, TrainingInterruptedError
from finjepa_model.world_model import FinJEPA
from finjepa_model.zero_shot import OUTCOMES, infer_task

TD_FOLDER = "td"  # in the run folder of the world model


class TDTrainer:
    """Trains `model.zero_shot` and nothing else of the model.

    Args:
        model: a trained world model whose config has `td.enabled`.
        run_folder: the one of the world model's training.
        report: called with every record that goes to its `metrics.jsonl`.
    """

    def __init__(self, model: FinJEPA, panel: Panel, run_folder: Path, report: Report | None = None):
        assert model.zero_shot is not None
        self.model, self.branch, self.config = model, model.zero_shot, model.config
        self.run_folder, self.report = run_folder / TD_FOLDER, report
        model.eval()
        self.device, self.panel = next(model.parameters()).device, panel
        self.experience = Experience(model, panel)
        self.optimizer = torch.optim.Adam(_groups(self.branch, self.config))
        self.step, self.best = 0, Best()
        self.stop_requested = False
        self.score: PolicyScore | None = None  # its tasks are in units that are known when training begins

    def train(self) -> dict[str, Any]:
        """Train to the end, or until `td.patience` evaluations have brought nothing better; the branch is then the best one,
        and keeps next states to infer rewards on.

        Returns:
            What `metrics.json` has under "td".

        Raises:
            TrainingInterruptedError: after `stop_requested` was set; the state is saved.
            FinJEPAError: if the loss is no longer a number; the last good state is kept.
        """
        self._begin()
        td, training, started = self.config.td, self.config.training, time.monotonic()
        terms: dict[str, Tensor] = {}
        with tqdm(total=td.steps, initial=self.step, desc="td", unit="step", mininterval=0.5) as bar:
            while self.step < td.steps and not self._is_done():
                terms = self.train_step()
                self.step += 1
                bar.update()
                last = self.step == td.steps
                if self.step % training.log_every == 0 or last:
                    self._log(terms)
                if self.step % td.evaluate_every == 0 or last:
                    self._score_and_keep()
                if self.stop_requested:
                    self._save()
                    raise TrainingInterruptedError(f"training of td stopped at step {self.step} of {td.steps}")
                if self.step % training.checkpoint_every == 0 or last:
                    self._save()
        policy = load_best(self.run_folder, self.device, self.branch)
        self._relabel()
        return self.evaluate() | {
            "policy": policy,
            "training": {name: float(value) for name, value in terms.items()},
            "steps": self.step,
            "seconds": round(time.monotonic() - started, 3),
        }

    def train_step(self) -> dict[str, Tensor]:
        torch.manual_seed(_mix(self.config.training.seed, self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = falling(group["initial_lr"], self.step, self.config.td.steps)
        transition = self.experience.draw(self.step)
        terms = self.branch.algorithm.losses(transition.before, transition.action, transition.after, transition.task_YZ)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.branch.parameters(), 10 * self.config.training.gradient_clip)
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
        """Eigenvalues of the covariance of the task features, which tell a collapse, and how well each outcome is linear in
        them."""
        centred_RZ = self.branch.relabelled_RZ - self.branch.relabelled_RZ.mean(0)
        eigenvalues_Z = torch.linalg.eigvalsh(centred_RZ.T.double() @ centred_RZ.double() / len(centred_RZ))
        share_Z = eigenvalues_Z.clamp(min=1e-12) / eigenvalues_Z.sum().clamp(min=1e-12)
        quantities = self.branch.quantities
        varying = [name for name in OUTCOMES if float(quantities[name].std()) > 0]
        fits = {
            name: infer_task(lambda values, name=name: values[name], self.branch.relabelled_RZ, quantities).fit
            for name in varying
        }
        return {
            "eigenvalues": [float(value) for value in eigenvalues_Z.flip(0)],
            "effective_rank": float(torch.exp(-(share_Z * share_Z.log()).sum())),
            "fit": fits,
        }

    @torch.no_grad()
    def _relabel(self) -> None:
        """Next states of fresh portfolios, half of them led there by the actor."""
        drawn = self._draw(self.config.td.steps)
        features_RZ = torch.cat([self.branch.algorithm.task_encoder(transition.after) for transition in drawn])
        quantities_RQ = torch.cat([transition.quantities_YQ for transition in drawn])
        kept = slice(self.config.td.relabelled)
        self.branch.remember(features_RZ[kept], quantities_RQ[kept])

    def _draw(self, first_step: int) -> list[Transition]:
        """As many transitions as are relabelled, or a few more, each batch on a market of its own."""
        td = self.config.td
        drawn = []
        for step in range(
            first_step, first_step + td.reuse * math.ceil(td.relabelled / (td.dates * td.portfolios)), td.reuse
        ):
            torch.manual_seed(_mix(self.config.training.seed, step))
            drawn.append(self.experience.draw(step))
        return drawn

    def _log(self, terms: dict[str, Tensor]) -> None:
        eigenvalues_Z = torch.linalg.eigvalsh(self.branch.algorithm.covariance_DD)
        record = {"kind": "td", "step": self.step, **{name: float(value) for name, value in terms.items()}}
        record |= {"lowest_eigenvalue": float(eigenvalues_Z[0]), "highest_eigenvalue": float(eigenvalues_Z[-1])}
        self._record(record)

    def _score_and_keep(self) -> None:
        """Keep the policy if it is the best so far."""
        assert self.score is not None
        score = self.score()
        self._record({"kind": "td_validation", "step": self.step, "score": score})
        if -score < self.best.loss:
            self.best = Best(-score, self.step)
            save_best(self.run_folder, self.branch, {"score": score, "step": self.step})
        else:
            self.best.evaluations_since += 1

    def _is_done(self) -> bool:
        patience = self.config.td.patience
        return patience > 0 and self.best.evaluations_since >= patience

    def _record(self, record: dict[str, Any]) -> None:
        append_record(self.run_folder, record)
        if self.report:
            self.report(record)

    def _save(self) -> None:
        save_state(self.run_folder, self.step, self.best, self.branch, self.optimizer)

    def _begin(self) -> None:
        """Go on where an interrupted run was, or begin: with the world model's encoders and the units of the outcomes."""
        self.run_folder.mkdir(parents=True, exist_ok=True)
        self.step, self.best = load_state(self.run_folder, self.device, self.branch, self.optimizer)
        if self.step > 0:
            forget_after(self.run_folder, self.step)
            self.score = PolicyScore(self.model, self.panel)
            return
        forget_after(self.run_folder, -1)
        self.branch.adopt(self.model.encoder, self.model.portfolio_encoder)
        self.branch.calibrate(torch.cat([transition.after.outcome_YO for transition in self._draw(0)]))
        self.score = PolicyScore(self.model, self.panel)
        self._score_and_keep()


def _groups(branch: nn.Module, config: FinJEPAConfig) -> list[dict[str, Any]]:
    """Task features learn more slowly than what predicts them, and so does the actor than what it follows."""
    td = config.td
    rates = {"algorithm.task_encoder.": td.task_learning_rate, "algorithm.actor.": td.actor_learning_rate}
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in branch.named_parameters():
        if parameter.requires_grad:
            rate = next((rate for start, rate in rates.items() if name.startswith(start)), td.learning_rate)
            groups.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate, "initial_lr": rate} for rate, parameters in groups.items()]


def _mix(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step * 8_191 + 77) % (2**63)
