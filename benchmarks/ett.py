"""ETTh1, next patch: what a frozen encoder knows of the next 32 hours of oil temperature (reference: TS-JEPA; jepa.md, 7).

    python benchmarks/ett.py ETTh1.csv [--steps 800] [--seeds 3] [--modes ...] [--levels]

The product's own tokenizer, encoder, masked-patch objective, teacher and SIGReg; windows of 320 hours, patches of 32. Split
in time order 65 / 5 / 30 %, scaled by the training part alone. Every window, and what follows it, is taken relative to its
last value: the test years are colder than all of the training years, and a network says nothing sensible of levels that it has
not seen; `--levels` leaves them in. The probe is a ridge on the patch tokens (their sum, the last one, all of them side by
side): fitted on training windows, strength and pooling chosen on validation windows, measured on all test windows. Prints a
Markdown table; errors are of the scaled series.
"""

import argparse
import copy
import csv
import time
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from finjepa_model.config import LossConfig, ModelConfig, TrainingConfig
from finjepa_model.nn.encoder import (
    ContextEncoder,
    MaskedPatchPredictor,
    draw_masks,
    gather_patches,
    masked_patch_error,
    normalize,
)
from finjepa_model.nn.losses import SIGReg
from finjepa_model.training.evaluation import effective_rank
from finjepa_model.training.trainer import learning_rate, parameter_groups, teacher_momentum

WINDOW, PATCH = 320, 32
MODEL = ModelConfig(channels=("OT",), window=WINDOW, patch=PATCH, dim=128, heads=2, time_layers=1)
LOSS = LossConfig()
TRAINING = TrainingConfig(batch_size=64, learning_rate=1e-3, warmup_steps=50)
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)  # of the ridge, a row
MODES = ("random", "mae", "ema", "sigreg", "both")
POOLS = {"sum": lambda t: t.sum(1), "last": lambda t: t[:, -1], "concat": lambda t: t.flatten(1)}


@dataclass(frozen=True)
class Windows:
    """Past [n, 320] and next patch [n, 32] of a block, at a stride."""

    past: Tensor
    future: Tensor

    @classmethod
    def of(cls, series: np.ndarray, block: tuple[int, int], stride: int, levels: bool) -> "Windows":
        ends = range(max(block[0], WINDOW), block[1] - PATCH + 1, stride)
        past = np.stack([series[end - WINDOW : end] for end in ends])
        future = np.stack([series[end : end + PATCH] for end in ends])
        base = 0 if levels else past[:, -1:]
        return cls(torch.from_numpy(past - base).float(), torch.from_numpy(future - base).float())


class Autoencoder(nn.Module):
    """Masked autoencoder of the same size: the same encoder and predictor, asked for the values of the masked patches."""

    def __init__(self, encoder: ContextEncoder):
        super().__init__()
        self.encoder, self.predictor = encoder, MaskedPatchPredictor(MODEL)
        self.values = nn.Linear(MODEL.dim, PATCH)

    def loss(self, past_YT: Tensor) -> Tensor:
        visible, masked = draw_masks((len(past_YT),), MODEL.patches, LOSS.mask_ratio, past_YT.device)
        seen = self.encoder.encode_patches(past_YT.unsqueeze(-1), torch.ones_like(past_YT, dtype=torch.bool), visible)
        wanted = gather_patches(past_YT.unflatten(-1, (MODEL.patches, PATCH)), masked)
        return (self.values(self.predictor(seen, visible, masked)) - wanted).square().mean()


class JointEmbedding(nn.Module):
    """Masked-patch prediction of latents, as `finjepa_model.nn.losses` has it, on one series alone."""

    def __init__(self, encoder: ContextEncoder, recipe: str):
        super().__init__()
        self.encoder, self.predictor, self.recipe = encoder, MaskedPatchPredictor(MODEL), recipe
        self.teacher = copy.deepcopy(encoder).requires_grad_(False) if recipe != "sigreg" else None
        self.sigreg = SIGReg(LOSS.sigreg_slices)

    def loss(self, past_YT: Tensor, seed: int) -> Tensor:
        window = past_YT.unsqueeze(-1), torch.ones_like(past_YT, dtype=torch.bool)
        online = self.encoder.encode_patches(*window) if self.recipe != "ema" else None
        if self.teacher is None:
            target = online.detach()
        else:
            with torch.no_grad():
                target = self.teacher.encode_patches(*window)
        loss = masked_patch_error(self.encoder, self.predictor, *window, target, LOSS.mask_ratio).mean()
        if online is not None:  # at each place of the window over the batch, on what is predicted
            loss = loss + LOSS.sigreg * self.sigreg(normalize(online).transpose(0, 1), seed)
        return loss

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        if self.teacher is not None:
            for old, new in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
                old.lerp_(new, 1 - momentum)


def train(mode: str, series: np.ndarray, stop: int, steps: int, seed: int, levels: bool) -> ContextEncoder:
    """An encoder after `steps` steps on windows that start anywhere in the first `stop` hours."""
    torch.manual_seed(seed)
    encoder = ContextEncoder(MODEL)
    if mode == "random":
        return encoder.eval()
    learner = Autoencoder(encoder) if mode == "mae" else JointEmbedding(encoder, mode)
    optimizer = torch.optim.AdamW(parameter_groups(learner, TRAINING.weight_decay))
    values, random = torch.from_numpy(series).float(), np.random.default_rng(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(TRAINING, step, steps)
        starts = torch.from_numpy(random.integers(0, stop - WINDOW, TRAINING.batch_size))
        batch = values[starts.unsqueeze(-1) + torch.arange(WINDOW)]
        batch = batch if levels else batch - batch[:, -1:]
        loss = learner.loss(batch) if mode == "mae" else learner.loss(batch, seed * 1_000_003 + step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), TRAINING.gradient_clip)
        optimizer.step()
        if isinstance(learner, JointEmbedding):
            learner.follow(teacher_momentum(LOSS, step, steps))
    return encoder.eval()


@torch.no_grad()
def tokens(encoder: ContextEncoder, past: Tensor) -> Tensor:
    parts = [encoder.encode_patches(p.unsqueeze(-1), torch.ones_like(p, dtype=torch.bool)) for p in past.split(512)]
    return torch.cat(parts)


def ridge(parts: list[tuple[Tensor, Tensor]]) -> tuple[float, float, float]:
    """(validation MSE, test MSE, test MAE) of a ridge of (inputs, targets) of the three blocks, its strength the best on the
    second."""
    fit, choose, judge = ((x.double().numpy(), y.double().numpy()) for x, y in parts)
    probes = [make_pipeline(StandardScaler(), Ridge(strength * len(fit[0]))).fit(*fit) for strength in STRENGTHS]
    errors = [(probe.predict(choose[0]) - choose[1], probe.predict(judge[0]) - judge[1]) for probe in probes]
    seen, unseen = min(errors, key=lambda both: float(np.square(both[0]).mean()))
    return float(np.square(seen).mean()), float(np.square(unseen).mean()), float(np.abs(unseen).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--levels", action="store_true", help="leave the level of each window in")
    arguments = parser.parse_args()
    with open(arguments.csv, encoding="utf-8") as file:
        series = np.array([float(row["OT"]) for row in csv.DictReader(file)])
    train_end, validation_end = int(0.65 * len(series)), int(0.70 * len(series))
    series = (series - series[:train_end].mean()) / series[:train_end].std()
    blocks = (
        Windows.of(series, (0, train_end), 4, arguments.levels),
        Windows.of(series, (train_end, validation_end), 4, arguments.levels),
        Windows.of(series, (validation_end, len(series)), 1, arguments.levels),
    )
    judge = blocks[2]
    print(f"{len(judge.past):,} test windows, stride 1; {arguments.steps} steps, {arguments.seeds} seeds\n")
    print("| | test MSE | MAE | pooling | effective rank of the tokens | seconds a run |\n|---|--:|--:|---|--:|--:|")
    for name, guess in (("last value", judge.past[:, -1:]), ("the same hour yesterday", judge.past[:, -24:])):
        guess = guess.repeat(1, 32)[:, :PATCH]
        error = guess - judge.future
        print(f"| {name} | {error.square().mean():.4f} | {error.abs().mean():.4f} | | | |")
    _, mse, mae = ridge([(w.past, w.future) for w in blocks])
    print(f"| ridge on the 320 raw values | {mse:.4f} | {mae:.4f} | | | |", flush=True)
    for mode in arguments.modes:
        rows = []
        for seed in range(arguments.seeds):
            started = time.perf_counter()
            encoder = train(mode, series, train_end, arguments.steps, seed, arguments.levels)
            seconds = time.perf_counter() - started
            seen = [tokens(encoder, w.past) for w in blocks]
            results = {
                name: ridge([(pool(t), w.future) for t, w in zip(seen, blocks, strict=True)])
                for name, pool in POOLS.items()
            }
            best = min(results, key=lambda name: results[name][0])
            rank = float(effective_rank(seen[2][::8].flatten(0, 1)))
            rows.append((results[best][1], results[best][2], best, rank, seconds))
        mse, mae, rank, seconds = (np.array([row[i] for row in rows]) for i in (0, 1, 3, 4))
        pools = "/".join(row[2] for row in rows)
        print(
            f"| {mode} | {mse.mean():.4f} ± {mse.std(ddof=1):.4f} | {mae.mean():.4f} ± {mae.std(ddof=1):.4f} | {pools} "
            f"| {rank.mean():.1f} ± {rank.std(ddof=1):.1f} | {seconds.mean():.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
