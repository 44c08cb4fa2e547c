"""Trains the zero-shot branch of a world model: market paths from the panel, portfolios and actions drawn on the device.

A step is a function of the seed and its number, so training resumes to the bit.

Shapes: B decision dates, C portfolios on each, Y = B x C, R relabelled next states, O outcomes, Z task features.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from finjepa_model.config import FinJEPAConfig
from finjepa_model.errors import FinJEPAError
from finjepa_model.training.experience import Experience
from finjepa_model.training.panel import Panel
from finjepa_model.training.records import append_record, forget_after
from finjepa_model.training.state import Best, load_state, save_state
from finjepa_model.training.trainer import Report, TrainingInterruptedError
from finjepa_model.world_model import FinJEPA
from finjepa_model.zero_shot import OUTCOMES, infer_task

TD_FOLDER = "td"  # in the run folder of the world model
_CALIBRATION_STEP = -1  # its portfolios are seen in no training step


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
        self.experience = Experience(model, panel)
        self.optimizer = torch.optim.Adam(_groups(self.branch, self.config))
        self.step = 0
        self.stop_requested = False

    def train(self) -> dict[str, Any]:
        """Train to the end, and keep next states to infer rewards on.

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
            while self.step < td.steps:
                terms = self.train_step()
                self.step += 1
                bar.update()
                last = self.step == td.steps
                if self.step % training.log_every == 0 or last:
                    self._log(terms)
                if self.stop_requested:
                    self._save()
                    raise TrainingInterruptedError(f"training of td stopped at step {self.step} of {td.steps}")
                if self.step % training.checkpoint_every == 0 or last:
                    self._save()
        self._relabel()
        return self.evaluate() | {
            "training": {name: float(value) for name, value in terms.items()},
            "steps": self.step,
            "seconds": round(time.monotonic() - started, 3),
        }

    def train_step(self) -> dict[str, Tensor]:
        torch.manual_seed(_mix(self.config.training.seed, self.step))
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
        features, quantities, count, step = [], [], 0, self.config.td.steps
        while count < self.config.td.relabelled:
            torch.manual_seed(_mix(self.config.training.seed, step))
            transition = self.experience.draw(step)
            features.append(self.branch.algorithm.task_encoder(transition.after))
            quantities.append(transition.quantities_YQ)
            count, step = count + len(features[-1]), step + self.config.td.reuse
        kept = slice(self.config.td.relabelled)
        self.branch.remember(torch.cat(features)[kept], torch.cat(quantities)[kept])

    def _log(self, terms: dict[str, Tensor]) -> None:
        eigenvalues_Z = torch.linalg.eigvalsh(self.branch.algorithm.covariance_DD)
        record = {"kind": "td", "step": self.step, **{name: float(value) for name, value in terms.items()}}
        record |= {"lowest_eigenvalue": float(eigenvalues_Z[0]), "highest_eigenvalue": float(eigenvalues_Z[-1])}
        append_record(self.run_folder, record)
        if self.report:
            self.report(record)

    def _save(self) -> None:
        save_state(self.run_folder, self.step, Best(), self.branch, self.optimizer)

    def _begin(self) -> None:
        """Go on where an interrupted run was, or begin: with the world model's encoders and the units of the outcomes."""
        self.run_folder.mkdir(parents=True, exist_ok=True)
        self.step, _ = load_state(self.run_folder, self.experience.device, self.branch, self.optimizer)
        forget_after(self.run_folder, self.step)
        if self.step == 0:
            torch.manual_seed(_mix(self.config.training.seed, _CALIBRATION_STEP))
            self.branch.adopt(self.model.encoder, self.model.portfolio_encoder)
            self.branch.calibrate(self.experience.draw(0).after.outcome_YO)


def _groups(branch: nn.Module, config: FinJEPAConfig) -> list[dict[str, Any]]:
    """Task features learn more slowly than what predicts them."""
    td = config.td
    learned = {name: p for name, p in branch.named_parameters() if p.requires_grad}
    slow = [p for name, p in learned.items() if name.startswith("algorithm.task_encoder.")]
    fast = [p for name, p in learned.items() if not name.startswith("algorithm.task_encoder.")]
    return [{"params": fast, "lr": td.learning_rate}, {"params": slow, "lr": td.task_learning_rate}]


def _mix(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step * 8_191 + 77) % (2**63)
