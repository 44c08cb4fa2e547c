"""The files of a training: its state to resume from, the best model so far, and `metrics.jsonl`.

Everything random is a function of the seed, the step and the place in the global batch, and so are schedules and SIGReg's
directions; the step, the weights (teachers included) and the optimiser are all there is to keep. A file is whole or absent.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finjepa_model.training.records import STATE_FILE

BEST_FILE = "best.pt"


@dataclass
class Best:
    """The evaluation with the lowest validation loss among those whose latents had not collapsed."""

    loss: float = float("inf")
    step: int = 0
    evaluations_since: int = 0


def save_state(folder: Path, step: int, best: Best, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    state = {"step": step, "best": asdict(best), "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    _save(state, folder / STATE_FILE)


def load_state(
    folder: Path, device: torch.device, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, Best]:
    """Load in place what `save_state` kept; step 0 where there is nothing."""
    if not (folder / STATE_FILE).is_file():
        return 0, Best()
    state = torch.load(folder / STATE_FILE, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], Best(**state["best"])


def save_best(folder: Path, model: nn.Module, metrics: dict[str, Any]) -> None:
    """Keep the model together with the evaluation that it won."""
    _save({"model": model.state_dict(), "metrics": metrics}, folder / BEST_FILE)


def load_best(folder: Path, device: torch.device, model: nn.Module) -> dict[str, Any]:
    """Load the best model in place; returns its evaluation."""
    best = torch.load(folder / BEST_FILE, map_location=device, weights_only=True)
    model.load_state_dict(best["model"])
    return best["metrics"]


def _save(content: dict[str, Any], file: Path) -> None:
    beside = file.with_name(f".{file.name}.tmp")
    try:
        with beside.open("wb") as stream:
            torch.save(content, stream)
        os.replace(beside, file)
    except (RuntimeError, OSError) as error:
        beside.unlink(missing_ok=True)
        if isinstance(error.__context__, OSError):  # PyTorch's writer does not say that the disk is full
            raise error.__context__ from None
        raise
