"""The training loop: one function of a config and a panel, resumable to the bit, alone or under torchrun."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from finjepa_model.config import FinJEPAConfig, LossConfig, TrainingConfig
from finjepa_model.data.batches import BatchSource, MarketBatch, PooledBatches
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import learned_blocks, split_dates
from finjepa_model.errors import FinJEPAError
from finjepa_model.nn.distributed import rank_and_ranks
from finjepa_model.training import run_folder as files
from finjepa_model.training.behaviour import sample_path
from finjepa_model.training.evaluation import monitor
from finjepa_model.training.readout_fit import fit_readout
from finjepa_model.training.risk_fit import fit_trained
from finjepa_model.world_model import WorldModel


def learning_rate(training: TrainingConfig, step: int, total_steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    return falling(training.learning_rate, step - training.warmup_steps, total_steps - training.warmup_steps)


def falling(rate: float, step: int, total_steps: int) -> float:
    """A cosine from a rate to zero."""
    return rate * 0.5 * (1 + math.cos(math.pi * step / max(total_steps, 1)))


def teacher_momentum(loss: LossConfig, step: int, total_steps: int) -> float:
    """`ema_start` at the first step, `ema_end` at the last one, linear between them."""
    return loss.ema_start + (loss.ema_end - loss.ema_start) * step / max(total_steps - 1, 1)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices; none for biases, norms and tokens."""
    learned = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learned if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
    ]


Report = Callable[[dict[str, Any]], None]
Terms = dict[str, Tensor]


class TrainingInterruptedError(Exception):
    """Training was asked to stop; everything that resuming needs is on disk."""


class Trainer:
    """Trains a world model on the first block of a panel, and evaluates it on the second after every epoch.

    Args:
        config: with `model.channels` and `model.market_channels` those of the panel.
        run_folder: where `metrics.jsonl`, the weights to begin with, the state for resuming and the best model live; an
            interrupted run found there goes on.
        report: called on every rank with every record; rank 0 writes it to `metrics.jsonl` as well.
    """

    def __init__(self, config: FinJEPAConfig, panel: Panel, run_folder: Path, report: Report | None = None):
        self.config, self.panel = config, panel
        self.run_folder, self.report = run_folder, report
        self.rank, self.ranks = rank_and_ranks()
        self.device = pick_device(self.rank)
        training = config.training
        if training.batch_size % self.ranks or training.batch_size // self.ranks < 2:
            raise FinJEPAError(
                f"training.batch_size={training.batch_size} does not divide into {self.ranks} parts of at least 2, one for "
                "each process; choose a multiple"
            )
        if training.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with this only
        torch.use_deterministic_algorithms(training.deterministic)
        splits = split_dates(len(panel.dates), config)
        sources = [
            BatchSource(one, config, block, self.rank, self.ranks) for one, block in learned_blocks(panel, config)
        ]
        self.source = PooledBatches(sources, training.seed)
        self.validation = BatchSource(panel, config, splits.validation, self.rank, self.ranks)
        torch.manual_seed(training.seed)  # the same weights on every rank
        self.model = WorldModel(config).to(self.device)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, training.weight_decay), lr=0.0)
        self.total_steps = training.epochs * training.steps_per_epoch
        self.step, self.best = 0, files.Best()
        self.stop_requested, self._all_stop = False, False
        self._seconds, self._timed_steps = 0.0, 0  # of training steps, without evaluations and saves

    def train(self) -> dict[str, Any]:
        """Train to the end, or until `training.patience` evaluations have brought nothing better.

        The model is then the best one by validation loss, among those whose latents had not collapsed, with its read-out of
        expected returns fitted.

        Returns:
            The content of a checkpoint's `metrics.json`; nothing on other ranks than 0, which need not see its files.

        Raises:
            TrainingInterruptedError: after `stop_requested` was set; the state is saved.
            FinJEPAError: if the loss is no longer a number; the last good state is kept.
        """
        self._begin()
        training, started = self.config.training, time.monotonic()
        bar = tqdm(
            total=self.total_steps, initial=self.step, desc="training", unit="step", disable=self.rank > 0,
            mininterval=0.5,
        )  # fmt: skip
        last: dict[str, Any] = {}
        while self.step < self.total_steps and not 0 < training.patience <= self.best.evaluations_since:
            before = time.perf_counter()
            terms = self.train_step()
            self._seconds, self._timed_steps = self._seconds + time.perf_counter() - before, self._timed_steps + 1
            self.step += 1
            bar.update()
            if self.step % training.log_every == 0 or self.step == self.total_steps:
                last = self._log("train", _numbers(terms, self.ranks) | self._speed())
                bar.set_postfix(loss=f"{last['loss']:.3f}")
            if self.step % training.steps_per_epoch == 0:
                self._evaluate_and_keep()
            # of several ranks all stop after the same step: a signal that reached one of them after the message is in the next
            if self.stop_requested if self.ranks == 1 else self._all_stop:
                self._save()
                raise TrainingInterruptedError(f"training stopped at step {self.step} of {self.total_steps}")
            if self.step % training.checkpoint_every == 0 and self.step < self.total_steps:
                self._save()
        bar.close()
        if self.rank > 0:
            return {}
        best = files.load_best(self.run_folder, self.model)
        return best | {
            "readout": fit_readout(self.model, self.panel),
            "risk": fit_trained(self.model, self.panel),
            "training": {name: value for name, value in last.items() if name not in ("kind", "step")}
            | {
                "steps": self.step,
                "best_step": self.best.step,
                "seconds": round(time.monotonic() - started, 3),
                "device": str(self.device),
                "processes": self.ranks,
            },
        }

    def train_step(self) -> Terms:
        """One step of the optimiser; everything random in it is a function of the seed and the step.

        Returns:
            This process's share of every term of the loss, and the norm of the gradient.
        """
        training, loss = self.config.training, self.config.loss
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(training, self.step, self.total_steps)
        self.optimizer.zero_grad(set_to_none=True)
        terms = self._forward(self.source.draw(self.step).to(self.device))
        terms["loss"].backward()
        self._average_gradients()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), training.gradient_clip)
        if not torch.isfinite(norm):
            raise FinJEPAError(
                f"the loss is no longer a number at step {self.step}; the last good state is in {self.run_folder}: "
                "lower training.learning_rate or use training.precision=float32"
            )
        self.optimizer.step()
        self.model.update_teacher(teacher_momentum(loss, self.step, self.total_steps))
        return {name: value.detach() for name, value in terms.items()} | {"gradient_norm": norm.detach()}

    @torch.no_grad()
    def evaluate(self) -> tuple[dict[str, float], dict[str, Any]]:
        """Mean losses over fixed validation batches, and the collapse monitors on the first of them."""
        training = self.config.training
        self.model.eval()
        totals: Terms = {}
        for i in range(training.evaluate_batches):
            torch.manual_seed(seed_of(training.seed, i, -1))  # the same on every rank, see draw_rows
            batch = self.validation.draw(i).to(self.device)
            terms = self.model.loss(batch, sample_path(batch, self.config.portfolio), seed=i)
            for name, value in terms.items():
                totals[name] = totals.get(name, 0) + value / training.evaluate_batches
        torch.manual_seed(seed_of(training.seed, 0, -1))
        batch = self.validation.draw(0).to(self.device)
        diagnostics = [monitor(self.model, batch)]
        if self.ranks > 1:  # monitors are taken over one rank's share, and all must decide alike
            dist.broadcast_object_list(diagnostics)
        self.model.train()
        return _numbers(totals, self.ranks), diagnostics[0]

    def _forward(self, batch: MarketBatch) -> Terms:
        training = self.config.training
        seed = seed_of(training.seed, self.step, 0)
        torch.manual_seed(seed)  # the same on every rank, see draw_rows
        path = sample_path(batch, self.config.portfolio)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=training.precision == "bfloat16"):
            return self.model.loss(batch, path, seed)

    def _evaluate_and_keep(self) -> None:
        validation, diagnostics = self.evaluate()
        self._log("validation", validation | diagnostics)
        better = validation["loss"] < self.best.loss and not diagnostics["collapsed"]
        # a first one is kept whatever it is, so that there is a model to look at
        if better or self.best.step == 0:
            loss = validation["loss"] if not diagnostics["collapsed"] else float("inf")
            self.best = files.Best(loss, self.step)
            if self.rank == 0:
                files.save_best(self.run_folder, self.model, {"validation": validation, "diagnostics": diagnostics})
        else:
            self.best.evaluations_since += 1

    def _average_gradients(self) -> None:
        """Over the ranks, in one message that also says whether one of them has to stop."""
        if self.ranks == 1:
            return
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        stop = gradients[0].new_tensor([float(self.stop_requested)])
        message = torch.cat([*(g.flatten() for g in gradients), stop]) / self.ranks
        dist.all_reduce(message)
        parts = message[:-1].split([g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        self._all_stop = bool(message[-1] > 0)

    def _speed(self) -> dict[str, float]:
        """Samples a second of all ranks, and the most memory that was taken of a GPU."""
        speed = {"samples_per_second": self.config.training.batch_size * self._timed_steps / self._seconds}
        if self.device.type == "cuda":
            speed["gpu_memory_bytes"] = float(torch.cuda.max_memory_allocated(self.device))
        return speed

    def _log(self, kind: str, values: dict[str, Any]) -> dict[str, Any]:
        record = {"kind": kind, "step": self.step, **values}
        if self.rank == 0:
            files.append_record(self.run_folder, record)
        if self.report:
            self.report(record)
        return record

    def _save(self) -> None:
        if self.rank == 0:
            files.save_state(self.run_folder, self.step, self.best, self.model, self.optimizer)
        if self.ranks > 1:
            dist.barrier()

    def _begin(self) -> None:
        """Go on where an interrupted run was."""
        self.run_folder.mkdir(parents=True, exist_ok=True)
        self.step, self.best = files.load_state(self.run_folder, self.model, self.optimizer)
        if self.step == 0 and self.config.training.initial:
            files.load_initial(self.run_folder, self.model)
        if self.rank == 0:
            files.forget_after(self.run_folder, self.step)


def pick_device(rank: int = 0) -> torch.device:
    """CUDA where there is any, each rank its own device; otherwise the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu")


def seed_of(seed: int, step: int, stream: int) -> int:
    """The seed of a step's random numbers; those of another stream differ."""
    return (seed * 1_000_003 + step * 8_191 + stream + 1) % (2**63)


def _numbers(terms: Terms, ranks: int) -> dict[str, float]:
    """Averages over the ranks, as plain numbers."""
    values = torch.stack([value.float() for value in terms.values()])
    if ranks > 1:
        dist.all_reduce(values)
    return dict(zip(terms, (values / ranks).tolist(), strict=True))
