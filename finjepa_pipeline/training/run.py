"""Checkpoints: which one a config and a panel lead to, and how it is made.

`checkpoints/<id>/` is the checkpoint, named after the hash of what made it; `checkpoints/<id>.run/` is the run that made it,
with `metrics.jsonl` and the state from which an interrupted training goes on.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finjepa_model.checkpoint import CHECKPOINT_FILES
from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json, write_text
from finjepa_model.training.state import STATE_FILE
from finjepa_pipeline.causes import disk_full
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.store import bring, keep, store_of
from finjepa_pipeline.training.code import training_code_version
from finjepa_pipeline.training.exchange import CONFIG_FILE, FAILURE_FILE, LAUNCHER_PID, RESULT_FOLDER
from finjepa_pipeline.training.mirror import RECORD_FILES, mirrored

_CONTENT = ("config.json", "model.safetensors")
_ID = re.compile(r"[0-9a-f]{16}")
Launch = Callable[[list[str], dict[str, str]], None]


def checkpoint_id(config: FinJEPAConfig, panel: Panel) -> str:
    """Hash of the config, the panel's content and the code that trains: the same id is the same checkpoint."""
    made_by = {
        "config": config.to_dict(),
        "panel": panel.content_hash,
        "code": training_code_version(config.td.enabled),
    }
    return hashlib.sha256(to_json(made_by, sort_keys=True).encode()).hexdigest()[:16]


def for_panel(config: FinJEPAConfig, panel: Panel) -> FinJEPAConfig:
    """The config with the channels of the panel."""
    channels = {"channels": panel.channels, "market_channels": panel.market_channels}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **channels))


def train_checkpoint(
    settings: Settings,
    config: FinJEPAConfig,
    panel: Panel,
    lineage: Mapping[str, Any],
    launch: Launch,
    processes: int,
    resume: bool = True,
    make_current: bool = True,
) -> tuple[Path, bool]:
    """Train, or find that it has been done: here, or on another machine that has the same FINJEPA_ARTIFACTS.

    Args:
        config: as `for_panel` returns it.
        lineage: content of `lineage.json`.
        launch: runs a command with additional environment variables and waits for it.
        processes: as `ranks` counts them.
        resume: go on from the state that an interrupted run has left, here or in the store; otherwise start anew.
        make_current: whether whoever asks for the newest checkpoint gets this one; the model of a fold is not for use.

    Returns:
        The checkpoint folder, and whether it was there already.

    Raises:
        FinJEPAError: if training failed for a reason that a user can mend.
    """
    name, store = checkpoint_id(config, panel), store_of(settings)
    checkpoint, run_folder = settings.checkpoints / name, settings.checkpoints / f"{name}.run"
    if bring(settings, checkpoint):
        keep(settings, checkpoint)
        if make_current:
            _make_current(settings, name)
        return checkpoint, True
    if not resume:
        shutil.rmtree(run_folder, ignore_errors=True)
    elif store is not None and not (run_folder / STATE_FILE).is_file():
        store.get(run_folder.parent.name, run_folder.name, run_folder)
    result = run_folder / RESULT_FOLDER
    if not (result / "metrics.json").is_file():  # otherwise it ended well, and nobody lived to say so
        shutil.rmtree(result, ignore_errors=True)
        begin(config, run_folder)
        if settings.ray_address is not None:
            keep(settings, panel.folder)  # for nodes that do not see this home
        command = training_command(settings, panel.folder, run_folder, processes)
        try:
            with mirrored(store, run_folder):
                launch(command, {LAUNCHER_PID: str(os.getpid())})
        except Exception:
            if not (run_folder / FAILURE_FILE).is_file():
                raise
        except BaseException as interruption:
            if (run_folder / STATE_FILE).is_file():
                interruption.add_note(f"{_reason(run_folder)}, its state is saved")
            raise

    if not (result / "metrics.json").is_file():
        raise FinJEPAError(_reason(run_folder))
    _write_json(result / "normalization.json", {"channels": panel.manifest["channels"]})
    _write_json(result / "lineage.json", {**lineage, "checkpoint": name, "content": content_hash(result)})
    (result / "README.md").write_text(
        f"# FinJEPA {name}\n\nNot released yet: the model card is written when the champion gate lets this checkpoint pass.\n",
        encoding="utf-8",
    )
    assert sorted(p.name for p in result.iterdir()) == sorted(CHECKPOINT_FILES)
    os.replace(result, checkpoint)
    keep(settings, checkpoint)
    if store is not None:  # the state has served; the curves stay
        records = {file: run_folder / file for file in RECORD_FILES if (run_folder / file).is_file()}
        store.put(run_folder.parent.name, run_folder.name, records)
    if make_current:
        _make_current(settings, name)
    return checkpoint, False


def _reason(run_folder: Path) -> str:
    """Why a training ended without a result."""
    failure = run_folder / FAILURE_FILE
    if failure.is_file() and (reason := failure.read_text(encoding="utf-8").strip()):
        return reason
    return disk_full(run_folder) or "training ended without a result"


def begin(config: FinJEPAConfig, run_folder: Path) -> None:
    """Tell a training process what it is to train; a state that is there stays."""
    run_folder.mkdir(parents=True, exist_ok=True)
    (run_folder / FAILURE_FILE).unlink(missing_ok=True)
    (run_folder / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")


def ranks(settings: Settings, processes: int | None) -> dict[str, Any]:
    """How many processes train, one for each GPU or one on the CPU where None, with how many threads each, on what device.

    Raises:
        FinJEPAError: if FINJEPA_COMPUTE names a cluster that is not there.
    """
    import torch

    threads = torch_threads()
    if settings.ray_address is None:
        cuda = f"cuda: {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "cpu"
        return {"processes": processes or max(torch.cuda.device_count(), 1), "threads": threads, "device": cuda}
    from finjepa_pipeline.scale import cluster

    with cluster.connected(settings.ray_address):
        return {"processes": cluster.processes_for(processes), "threads": threads, "device": cluster.device()}


def training_command(settings: Settings, panel: Path, run_folder: Path, processes: int) -> list[str]:
    """torchrun, on this machine alone; or what takes its place on a Ray cluster."""
    what = ["--panel", str(panel), "--run-folder", str(run_folder)]
    if settings.ray_address is not None:
        # with several processes torchrun gives one thread to each
        threads = torch_threads() if processes == 1 else int(os.environ.get("OMP_NUM_THREADS", "1"))
        program = [sys.executable, "-m", "finjepa_pipeline.scale.ranks", "--address", settings.ray_address]
        program += ["--artifacts", settings.artifacts] if settings.artifacts else []
        return [*program, "--ranks", str(processes), "--threads", str(threads), *what]
    torchrun = [sys.executable, "-m", "finjepa_pipeline.training.torchrun", "--standalone"]
    program = [f"--nproc-per-node={processes}", "-m", "finjepa_pipeline.training.launch"]
    return [*torchrun, *program, *what]


def torch_threads() -> int:
    """Of one process alone."""
    import torch

    return torch.get_num_threads()


def current_checkpoint(settings: Settings) -> Path:
    """The checkpoint that was trained, or found again, last.

    Raises:
        FinJEPAError: if there is none.
    """
    pointer = settings.checkpoints / "current.json"
    if pointer.is_file():
        folder = settings.checkpoints / json.loads(pointer.read_text(encoding="utf-8"))["checkpoint"]
        if folder.is_dir():
            return folder
    raise FinJEPAError(f"there is no checkpoint in {settings.checkpoints} yet; run `finjepa train` first")


def checkpoint_here(settings: Settings, name: str) -> Path | None:
    """The folder of a checkpoint by its id, fetched from the store if it is only there; None where it is nowhere."""
    folder = settings.checkpoints / name
    if not _ID.fullmatch(name):
        return folder if folder.is_dir() else None
    return folder if bring(settings, folder) else None


def content_hash(folder: Path) -> str:
    """Hash of the files that make a model act.

    Raises:
        FinJEPAError: if one of them is missing.
    """
    digest = hashlib.sha256()
    try:
        for name in _CONTENT:
            with (folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise FinJEPAError(f"{folder} is not a FinJEPA checkpoint: {error.filename} cannot be read") from error
    return digest.hexdigest()


def _make_current(settings: Settings, name: str) -> None:
    _write_json(settings.checkpoints / "current.json", {"checkpoint": name})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, to_json(content, indent=2, sort_keys=True) + "\n")
