"""The files of a training: `metrics.jsonl`, its state to resume from, and the best model so far.

Everything random is a function of the seed, the step and the place in the global batch, and so are schedules and SIGReg's
directions; the step, the weights (teachers included) and the optimiser are all there is to keep. A file is whole or absent.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finjepa_model.files import to_json, write_text, written_whole

if TYPE_CHECKING:
    import torch
    from torch import nn

METRICS_FILE, STATE_FILE, BEST_FILE = "metrics.jsonl", "trainer_state.pt", "best.pt"
INITIAL_FILE = "initial.safetensors"  # weights to begin with, where the config names a checkpoint


def append_record(run_folder: Path, record: dict[str, Any]) -> None:
    with (run_folder / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write(to_json(record) + "\n")


def read_metrics(run_folder: Path) -> Iterator[dict[str, Any]]:
    """The records of `metrics.jsonl`; a last line that was cut by a crash is left out."""
    file = run_folder / METRICS_FILE
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def forget_after(run_folder: Path, step: int) -> None:
    """Drop what an interrupted run logged after its last save: it will be logged again."""
    kept = [record for record in read_metrics(run_folder) if record["step"] <= step]
    write_text(run_folder / METRICS_FILE, "".join(to_json(record) + "\n" for record in kept))


@dataclass
class Best:
    """The evaluation with the lowest validation loss among those whose latents had not collapsed."""

    loss: float = float("inf")
    step: int = 0
    evaluations_since: int = 0


def save_state(folder: Path, step: int, best: Best, model: "nn.Module", optimizer: "torch.optim.Optimizer") -> None:
    state = {"step": step, "best": asdict(best), "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    _save(state, folder / STATE_FILE)


def load_state(folder: Path, model: "nn.Module", optimizer: "torch.optim.Optimizer") -> tuple[int, Best]:
    """Load in place what `save_state` kept; step 0 where there is nothing."""
    if not (folder / STATE_FILE).is_file():
        return 0, Best()
    state = _load(folder / STATE_FILE, model)
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], Best(**state["best"])


def load_initial(folder: Path, model: "nn.Module") -> None:
    """Load in place the weights that training begins with; what another training adds to a model (the td branch) stays."""
    from safetensors.torch import load_file  # here: the records are read without it

    model.load_state_dict(load_file(folder / INITIAL_FILE), strict=False)


def save_best(folder: Path, model: "nn.Module", metrics: dict[str, Any]) -> None:
    """Keep the model together with the evaluation that it won."""
    _save({"model": model.state_dict(), "metrics": metrics}, folder / BEST_FILE)


def load_best(folder: Path, model: "nn.Module") -> dict[str, Any]:
    """Load the best model in place; returns its evaluation."""
    return _load(folder / BEST_FILE, model)["metrics"]


def _load(file: Path, model: "nn.Module") -> dict[str, Any]:
    import torch  # here: the records are read without it

    content = torch.load(file, map_location=next(model.parameters()).device, weights_only=True)
    model.load_state_dict(content["model"])
    return content


def _save(content: dict[str, Any], file: Path) -> None:
    import torch  # here: the records are read without it

    try:
        with written_whole(file) as beside, beside.open("wb") as stream:
            torch.save(content, stream)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # PyTorch's writer does not say that the disk is full
            raise error.__context__ from None
        raise
