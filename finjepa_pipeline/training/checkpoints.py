"""Checkpoints: which one a config and a panel lead to, how it is made, and which one a user means.

`checkpoints/<id>/` is the checkpoint, named after the hash of what made it; `checkpoints/<id>.run/` is the run that made it,
with `metrics.jsonl` and the state from which an interrupted training goes on.
"""

import dataclasses
import functools
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import finjepa_model
from finjepa_model.checkpoint import CHECKPOINT_FILES, read_config, resolve_checkpoint
from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import checkpoint_blocks, further_panels, split_dates
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import read_json, to_json, write_json, write_text
from finjepa_model.training.run_folder import INITIAL_FILE, STATE_FILE
from finjepa_pipeline import compute
from finjepa_pipeline.causes import FAILURE_FILE, disk_full
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.store import bring, keep, sha256
from finjepa_pipeline.training import process
from finjepa_pipeline.training.process import CONFIG_FILE, RESULT_FOLDER

_CONTENT = ("config.json", "model.safetensors")
_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class NamedCheckpoint:
    """A checkpoint to act with.

    Attributes:
        folder: where its files lie on this machine.
        name: what its results are stored under. The id of a checkpoint that this home trained; owner/name@commit of the Hub;
            NAME@HASH of any other folder, and of one that holds other files than this home trained.
    """

    folder: Path
    name: str


def named_checkpoint(settings: Settings, asked: str | Path) -> NamedCheckpoint:
    """The checkpoint of an id of this home, of a folder or of a Hub repository, there at its newest commit or at the one in
    owner/name@commit; raises where there is none."""
    own = checkpoint_here(settings, str(asked))
    folder = (own or resolve_checkpoint(asked)).absolute()
    if own is None and not Path(asked).is_dir():  # the client names the folder of a snapshot after its commit
        return NamedCheckpoint(folder, f"{str(asked).partition('@')[0]}@{folder.name}")
    content = content_hash(folder)
    is_own = folder.parent.resolve() == settings.checkpoints.resolve()
    trained = is_own and _recorded(folder) in (None, (folder.name, content))
    return NamedCheckpoint(folder, folder.name if trained else f"{folder.name}@{content[:12]}")


def current_checkpoint(settings: Settings) -> Path:
    """The checkpoint that was trained for use, or found again, last; raises where there is none."""
    pointer = settings.checkpoints / "current.json"
    if pointer.is_file():
        folder = settings.checkpoints / read_json(pointer)["checkpoint"]
        if folder.is_dir():
            return folder
    raise FinJEPAError(f"there is no checkpoint in {settings.checkpoints} yet; run `finjepa train` first")


def make_current(settings: Settings, checkpoint: Path) -> None:
    """Whoever asks for the newest checkpoint gets this one."""
    write_json(settings.checkpoints / "current.json", {"checkpoint": checkpoint.name})


def checkpoint_here(settings: Settings, name: str) -> Path | None:
    """The folder of a checkpoint by its id, fetched from the store if it is only there; None where it is nowhere."""
    folder = settings.checkpoints / name
    if not _ID.fullmatch(name):
        return folder if folder.is_dir() else None
    return folder if bring(settings, folder) else None


def checkpoint_id(config: FinJEPAConfig, panel: Panel) -> str:
    """Hash of the config, the panel's content and the code that trains: the same id is the same checkpoint."""
    made_by = {"config": config.to_dict(), "panel": panel.content_hash, "code": training_code_version()}
    return hashlib.sha256(to_json(made_by, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def training_code_version() -> str:
    """Hash of the code that trains: the model package and the training process."""
    package = Path(finjepa_model.__file__).parent
    digest = hashlib.sha256()
    for file in [*sorted(package.rglob("*.py")), Path(process.__file__)]:
        digest.update(f"{file.relative_to(package.parent)} {sha256(file)}\n".encode())
    return digest.hexdigest()[:12]


def refuse_other_code(version: str) -> None:
    """Raises where this machine has other training code than the one that started the training."""
    if (here := training_code_version()) != version:
        raise FinJEPAError(
            f"the node {socket.gethostname()} has training code {here} and the driver {version}; install the same FinJEPA on both"
        )


def content_hash(folder: Path) -> str:
    """Hash of the files that make a model act; raises where one of them is missing."""
    digest = hashlib.sha256()
    try:
        for name in _CONTENT:
            digest.update(bytes.fromhex(sha256(folder / name)))
    except OSError as error:
        raise FinJEPAError(f"{folder} is not a FinJEPA checkpoint: {error.filename} cannot be read") from error
    return digest.hexdigest()


def for_panel(config: FinJEPAConfig, panel: Panel) -> FinJEPAConfig:
    """The config with the channels of the panel, and of those that are learned from beside it."""
    panels = [panel, *further_panels(panel, config)]
    names = dict.fromkeys(name for one in panels for name in one.channels)
    read = {"channels": tuple(names), "market_channels": panel.market_channels}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **read))


def train_checkpoint(
    settings: Settings,
    config: FinJEPAConfig,
    panel: Panel,
    lineage: Mapping[str, Any],
    where: Mapping[str, Any],
    watch: Callable[[], object] = lambda: None,
) -> tuple[Path, bool]:
    """Train, from the state that an interrupted run has left, or find that it has been done: here, or on another machine that
    has the same FINJEPA_ARTIFACTS.

    Args:
        config: as `for_panel` returns it.
        lineage: content of `lineage.json`.
        where: processes and threads, as `compute.ranks` counts them.
        watch: called every second or so while it trains.

    Returns:
        The checkpoint folder, and whether it was there already.

    Raises:
        FinJEPAError: if training failed for a reason that a user can mend.
    """
    checkpoint = settings.checkpoints / checkpoint_id(config, panel)
    run_folder, reused = run_folder_of(checkpoint), bring(settings, checkpoint)
    if not reused:
        try:
            if (training := begin(settings, config, panel, where)) is not None:
                compute.train(settings, training, watch)
        except BaseException as interruption:
            if not isinstance(interruption, Exception) and (run_folder / STATE_FILE).is_file():
                interruption.add_note(f"{_reason(run_folder)}, its state is saved")
            raise
        _finish(config, panel, lineage, checkpoint)
    keep(settings, checkpoint)
    return checkpoint, reused


def begin(settings: Settings, config: FinJEPAConfig, panel: Panel, where: Mapping[str, Any]) -> compute.Training | None:
    """What is left to train, from the state that is there; None where there is a checkpoint, or all that makes one."""
    checkpoint = settings.checkpoints / checkpoint_id(config, panel)
    run_folder = run_folder_of(checkpoint)
    if bring(settings, checkpoint) or (run_folder / RESULT_FOLDER / "metrics.json").is_file():
        return None
    shutil.rmtree(run_folder / RESULT_FOLDER, ignore_errors=True)
    run_folder.mkdir(parents=True, exist_ok=True)
    (run_folder / FAILURE_FILE).unlink(missing_ok=True)
    (run_folder / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    if config.training.initial:
        shutil.copyfile(_initial(settings, config, panel) / "model.safetensors", run_folder / INITIAL_FILE)
    check = partial(refuse_other_code, training_code_version())
    panels = (panel.folder, *(panel.folder.parent / name for name in config.training.panels))
    return compute.Training(process.train, check, panels, run_folder, where["processes"], where["threads"])


def _initial(settings: Settings, config: FinJEPAConfig, panel: Panel) -> Path:
    """The checkpoint whose weights a training begins with; raises where it is not here, is of another kind, or has learned from
    sessions after the training block."""
    name = config.training.initial
    folder = checkpoint_here(settings, name)
    if folder is None:
        raise FinJEPAError(f"training.initial={name} is no checkpoint of {settings.checkpoints}; leave it empty")
    if not is_of_kind(folder, config):
        raise FinJEPAError(
            f"training.initial={name} has another model.* or loss.recipe; set them as there, or leave it empty"
        )
    blocks = checkpoint_blocks(folder), split_dates(len(panel.dates), config).dates(panel.dates)
    learned, last = (one["train"][1] for one in blocks)
    if learned > last:
        raise FinJEPAError(
            f"training.initial={name} has learned up to {learned}, and this training ends {last}; leave it empty"
        )
    return folder


def is_of_kind(checkpoint: Path, config: FinJEPAConfig) -> bool:
    """Whether training by a config can begin with the weights of a checkpoint."""
    other = read_config(checkpoint)
    return (other.model, other.loss.recipe) == (config.model, config.loss.recipe)


def train_side_by_side(
    settings: Settings,
    panel: Panel,
    wanted: Mapping[str, FinJEPAConfig],
    where: Mapping[str, Any],
    log: Callable[[str], object],
    metric: str = "loss",
    stop_early: bool = False,
) -> dict[str, str]:
    """Train all configs that have no checkpoint, by one rank each, ahead of `train_checkpoint`; see `compute.tune`. Returns why
    configs have no checkpoint, by their names; empty of those that have what makes one."""
    begun = {name: begin(settings, config, panel, where) for name, config in wanted.items()}
    trainings = {name: training for name, training in begun.items() if training is not None}
    parts = {name: wanted[name].training for name in trainings}
    steps = {name: part.epochs * part.steps_per_epoch for name, part in parts.items()}
    grace = min((part.steps_per_epoch for part in parts.values()), default=1) if stop_early else None
    return dict.fromkeys(wanted, "") | compute.tune(settings, trainings, steps, metric, grace, log)


def run_folder_of(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.run")


def _finish(config: FinJEPAConfig, panel: Panel, lineage: Mapping[str, Any], checkpoint: Path) -> None:
    """Make a checkpoint of what a training has left."""
    run_folder = run_folder_of(checkpoint)
    result = run_folder / RESULT_FOLDER
    if not (result / "metrics.json").is_file():
        raise FinJEPAError(_reason(run_folder))
    rows = {row["name"]: row for one in [panel, *further_panels(panel, config)] for row in one.manifest["channels"]}
    write_json(result / "normalization.json", {"channels": [rows[name] for name in config.model.channels]})
    write_json(result / "lineage.json", {**lineage, "checkpoint": checkpoint.name, "content": content_hash(result)})
    write_text(
        result / "README.md",
        f"# FinJEPA {checkpoint.name}\n\n"
        "Not released yet: the model card is written when the champion gate lets this checkpoint pass.\n",
    )
    assert sorted(p.name for p in result.iterdir()) == sorted(CHECKPOINT_FILES)
    os.replace(result, checkpoint)


def _reason(run_folder: Path) -> str:
    """Why a training ended without a result."""
    failure = run_folder / FAILURE_FILE
    if failure.is_file() and (reason := failure.read_text(encoding="utf-8").strip()):
        return reason
    return disk_full(run_folder) or "training ended without a result"


def _recorded(folder: Path) -> tuple[str, str] | None:
    """The id and the content with which a checkpoint was trained; None in checkpoints of older versions."""
    try:
        made = read_json(folder / "lineage.json")
        return str(made["checkpoint"]), str(made["content"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
