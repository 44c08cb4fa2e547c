"""The training loop: one function of a config and a panel, resumable to the bit, alone or under torchrun."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from finjepa_model.config import FinJEPAConfig, TrainingConfig
from finjepa_model.diagnostics import monitor
from finjepa_model.errors import FinJEPAError
from finjepa_model.training.batches import BatchSource
from finjepa_model.training.behaviour import sample_path
from finjepa_model.training.panel import Panel
from finjepa_model.training.splits import split_dates
from finjepa_model.world_model import FinJEPA

STATE_FILE = "trainer_state.pt"
METRICS_FILE = "metrics.jsonl"
Report = Callable[[dict[str, Any]], None]


class TrainingInterruptedError(Exception):
    """Training was asked to stop; everything that resuming needs is on disk."""


class Trainer:
    """Trains a world model on the first block of a panel.

    Args:
        config: with `model.channels` those of the panel.
        run_folder: where `metrics.jsonl` and the state for resuming live; an interrupted run found there goes on.
        report: called on rank 0 with every record that goes to `metrics.jsonl`.
    """

    def __init__(self, config: FinJEPAConfig, panel: Panel, run_folder: Path, report: Report | None = None):
        self.config, self.run_folder, self.report = config, run_folder, report
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.device = pick_device(self.rank)
        training = config.training
        if training.batch_size % self.ranks:
            raise FinJEPAError(
                f"training.batch_size={training.batch_size} does not divide among {self.ranks} processes; choose a multiple"
            )
        splits = split_dates(len(panel.dates), config)
        self.source = BatchSource(panel, config, splits.train, self.rank, self.ranks)
        self.validation = BatchSource(panel, config, splits.validation, self.rank, self.ranks)
        torch.manual_seed(training.seed)  # the same weights on every rank
        self.model = FinJEPA(config).to(self.device)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, training.weight_decay), lr=0.0)
        self.total_steps = training.epochs * training.steps_per_epoch
        self.step = 0
        self.stop_requested = False

    def train(self) -> dict[str, Any]:
        """Train to the end.

        Returns:
            The content of a checkpoint's `metrics.json`.

        Raises:
            TrainingInterruptedError: after `stop_requested` was set; the state is saved.
            FinJEPAError: if the loss is no longer a number; the last good state is kept.
        """
        self._resume()
        training, started, first_step = self.config.training, time.monotonic(), self.step
        bar = tqdm(
            total=self.total_steps,
            initial=self.step,
            desc="training",
            unit="step",
            disable=self.rank > 0,
            mininterval=0.5,
        )
        terms: dict[str, Tensor] = {}
        while self.step < self.total_steps:
            terms = self.train_step()
            self.step += 1
            bar.update()
            last = self.step == self.total_steps
            if self.step % training.log_every == 0 or last:
                seconds = time.monotonic() - started
                values = self._log("train", terms, samples_per_second=self._samples(first_step) / seconds)
                bar.set_postfix(loss=f"{values['loss']:.3f}")
            if self.step % training.steps_per_epoch == 0:
                self._log("validation", *self.evaluate())
            if self.stop_requested:
                self._save()
                raise TrainingInterruptedError(f"training stopped at step {self.step} of {self.total_steps}")
            if self.step % training.checkpoint_every == 0 and not last:
                self._save()
        bar.close()
        validation, diagnostics = self.evaluate()
        return {
            "validation": _numbers(validation),
            "diagnostics": diagnostics,
            "training": _numbers(terms)
            | {
                "steps": self.step,
                "seconds": round(time.monotonic() - started, 3),
                "device": str(self.device),
                "processes": self.ranks,
            },
        }

    def train_step(self) -> dict[str, Tensor]:
        """One step of the optimiser. Everything random in it is a function of the seed, the step and the rank."""
        training, loss = self.config.training, self.config.loss
        torch.manual_seed(_mix(training.seed, self.step, self.rank))
        batch = self.source.draw(self.step).to(self.device)
        path = sample_path(batch, self.config.portfolio)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(training, self.step, self.total_steps)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=training.precision == "bfloat16"):
            terms = self.model.loss(batch, path, seed=_mix(training.seed, self.step, -1))
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        self._average_gradients()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), training.gradient_clip)
        if not torch.isfinite(norm):
            raise FinJEPAError(
                f"the loss is no longer a number at step {self.step}; the last good state is in {self.run_folder}: "
                "lower training.learning_rate or use training.precision=float32"
            )
        self.optimizer.step()
        progress = self.step / max(self.total_steps - 1, 1)
        self.model.update_teacher(loss.ema_start + (loss.ema_end - loss.ema_start) * progress)
        return {name: value.detach() for name, value in terms.items()} | {"gradient_norm": norm.detach()}

    @torch.no_grad()
    def evaluate(self) -> tuple[dict[str, Tensor], dict[str, float | bool]]:
        """Mean losses over fixed validation batches, and the collapse monitors on the first of them."""
        self.model.eval()
        totals: dict[str, Tensor] = {}
        diagnostics: dict[str, float | bool] = {}
        for i in range(self.config.training.evaluate_batches):
            torch.manual_seed(_mix(self.config.training.seed, i, self.rank))
            batch = self.validation.draw(i).to(self.device)
            path = sample_path(batch, self.config.portfolio)
            for name, value in self.model.loss(batch, path, seed=i).items():
                totals[name] = totals.get(name, 0) + value / self.config.training.evaluate_batches
            if i == 0:
                diagnostics = monitor(self.model, batch, path)
        self.model.train()
        return totals, diagnostics

    def _samples(self, first_step: int) -> int:
        return (self.step - first_step) * self.config.training.batch_size

    def _average_gradients(self) -> None:
        if self.ranks > 1:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= self.ranks

    def _log(self, kind: str, terms: dict[str, Tensor], monitors: dict | None = None, **more: float) -> dict[str, Any]:
        values = {"kind": kind, "step": self.step, **_numbers(terms), **(monitors or {}), **more}
        if self.rank == 0:
            with (self.run_folder / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
            if self.report:
                self.report(values)
        return values

    def _save(self) -> None:
        if self.rank == 0:
            state = {"step": self.step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            beside = self.run_folder / f".{STATE_FILE}.tmp"
            torch.save(state, beside)
            os.replace(beside, self.run_folder / STATE_FILE)
        if self.ranks > 1:
            dist.barrier()

    def _resume(self) -> None:
        self.run_folder.mkdir(parents=True, exist_ok=True)
        file = self.run_folder / STATE_FILE
        if file.is_file():
            state = torch.load(file, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
        if self.rank == 0:
            # what an interrupted run logged after its last save will be logged again
            kept = [r for r in read_metrics(self.run_folder) if r["step"] <= self.step]
            (self.run_folder / METRICS_FILE).write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")


def read_metrics(run_folder: Path) -> Iterator[dict[str, Any]]:
    """The records of `metrics.jsonl`; a last line that was cut by a crash is left out."""
    file = run_folder / METRICS_FILE
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def pick_device(rank: int = 0) -> torch.device:
    """CUDA where there is any, each rank its own device; otherwise the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu")


def learning_rate(training: TrainingConfig, step: int, total_steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(total_steps - training.warmup_steps, 1)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices; none for biases, norms and tokens."""
    learned = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learned if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
    ]


def _mix(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step * 8_191 + rank + 1) % (2**63)


def _numbers(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in terms.items()}
