"""Checkpoints: which one a config and a panel lead to, how it is made, and which one a user means.

`checkpoints/<id>/` is the checkpoint, named after the hash of what made it; `checkpoints/<id>.run/` is the run that made it,
with `metrics.jsonl` and the state from which an interrupted training goes on.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from finjepa_model.checkpoint import CHECKPOINT_FILES, resolve_checkpoint
from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json, write_text
from finjepa_model.training.records import METRICS_FILE, STATE_FILE
from finjepa_pipeline import compute
from finjepa_pipeline.causes import FAILURE_FILE, disk_full
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.store import Artifacts, bring, files_of, keep, store_of
from finjepa_pipeline.training import process
from finjepa_pipeline.training.code import refuse_other_code, training_code_version
from finjepa_pipeline.training.process import CONFIG_FILE, RESULT_FOLDER

_CONTENT = ("config.json", "model.safetensors")
_RECORDS = (CONFIG_FILE, METRICS_FILE)
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
    owner/name@commit.

    Raises:
        FinJEPAError: if there is none.
    """
    own = checkpoint_here(settings, str(asked))
    folder = (own or resolve_checkpoint(asked)).absolute()
    if own is None and not Path(asked).is_dir():  # the client names the folder of a snapshot after its commit
        return NamedCheckpoint(folder, f"{str(asked).partition('@')[0]}@{folder.name}")
    content = content_hash(folder)
    known = (None, (folder.name, content))
    if folder.parent.resolve() == settings.checkpoints.resolve() and _recorded(folder) in known:
        return NamedCheckpoint(folder, folder.name)
    return NamedCheckpoint(folder, f"{folder.name}@{content[:12]}")


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


def checkpoint_id(config: FinJEPAConfig, panel: Panel) -> str:
    """Hash of the config, the panel's content and the code that trains: the same id is the same checkpoint."""
    made_by = {
        "config": config.to_dict(),
        "panel": panel.content_hash,
        "code": training_code_version(config.td.enabled),
    }
    return hashlib.sha256(to_json(made_by, sort_keys=True).encode()).hexdigest()[:16]


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


def for_panel(config: FinJEPAConfig, panel: Panel) -> FinJEPAConfig:
    """The config with the channels of the panel."""
    channels = {"channels": panel.channels, "market_channels": panel.market_channels}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **channels))


def train_checkpoint(
    settings: Settings,
    config: FinJEPAConfig,
    panel: Panel,
    lineage: Mapping[str, Any],
    where: Mapping[str, Any],
    watch: Callable[[], object] = lambda: None,
    resume: bool = True,
    make_current: bool = True,
) -> tuple[Path, bool]:
    """Train, or find that it has been done: here, or on another machine that has the same FINJEPA_ARTIFACTS.

    Args:
        config: as `for_panel` returns it.
        lineage: content of `lineage.json`.
        where: processes and threads, as `compute.ranks` counts them.
        watch: called every second or so while it trains.
        resume: go on from the state that an interrupted run has left, here or in the store; otherwise start anew.
        make_current: whether whoever asks for the newest checkpoint gets this one; the model of a fold is not for use.

    Returns:
        The checkpoint folder, and whether it was there already.

    Raises:
        FinJEPAError: if training failed for a reason that a user can mend.
    """
    checkpoint = settings.checkpoints / checkpoint_id(config, panel)
    run_folder, reused = run_folder_of(checkpoint), bring(settings, checkpoint)
    if not reused:
        if not resume:
            shutil.rmtree(run_folder, ignore_errors=True)
        training = begin(settings, config, panel, where)
        if training is not None:
            _train(settings, training, watch)
        _finish(settings, panel, lineage, checkpoint)
    keep(settings, checkpoint)
    if make_current:
        _write_json(settings.checkpoints / "current.json", {"checkpoint": checkpoint.name})
    return checkpoint, reused


def begin(settings: Settings, config: FinJEPAConfig, panel: Panel, where: Mapping[str, Any]) -> compute.Training | None:
    """What is left to train; None where there is a checkpoint, or all that makes one. A state that is here or in the store
    stays."""
    checkpoint = settings.checkpoints / checkpoint_id(config, panel)
    run_folder, store = run_folder_of(checkpoint), store_of(settings)
    if bring(settings, checkpoint):
        return None
    if store is not None and not (run_folder / STATE_FILE).is_file():
        store.get(run_folder.parent.name, run_folder.name, run_folder)
    if (run_folder / RESULT_FOLDER / "metrics.json").is_file():  # and nobody lived to say so
        return None
    shutil.rmtree(run_folder / RESULT_FOLDER, ignore_errors=True)
    run_folder.mkdir(parents=True, exist_ok=True)
    (run_folder / FAILURE_FILE).unlink(missing_ok=True)
    (run_folder / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    check = partial(refuse_other_code, training_code_version())
    return compute.Training(process.train, check, panel.folder, run_folder, where["processes"], where["threads"])


def train_side_by_side(
    settings: Settings,
    panel: Panel,
    wanted: Mapping[str, FinJEPAConfig],
    where: Mapping[str, Any],
    log: Callable[[str], object],
    metric: str = "loss",
    stop_early: bool = False,
) -> dict[str, str]:
    """Train all configs that have no checkpoint, by one rank each, ahead of `train_checkpoint`; see `compute.tune`.

    Returns:
        Why configs have no checkpoint, by their names; empty of those that have what makes one.
    """
    begun = {name: begin(settings, config, panel, where) for name, config in wanted.items()}
    trainings = {name: training for name, training in begun.items() if training is not None}
    parts = {name: wanted[name].training for name in trainings}
    steps = {name: part.epochs * part.steps_per_epoch for name, part in parts.items()}
    grace = min((part.steps_per_epoch for part in parts.values()), default=1) if stop_early else None
    return dict.fromkeys(wanted, "") | compute.tune(settings, trainings, steps, metric, grace, log)


def run_folder_of(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.run")


def _train(settings: Settings, training: compute.Training, watch: Callable[[], object]) -> None:
    """Whatever the training saves goes to the store too; one that fails meanwhile is tried again, and must work at the end."""
    run_folder, store = training.run_folder, store_of(settings)
    shared = _saved_at(run_folder)

    def share() -> None:
        nonlocal shared
        saved = _saved_at(run_folder)
        if store is not None and saved != shared:
            _share(store, run_folder)
            shared = saved

    def watch_and_share() -> None:
        watch()
        with contextlib.suppress(FinJEPAError):
            share()

    try:
        compute.train(settings, training, watch_and_share)
    except BaseException as interruption:
        if not isinstance(interruption, Exception) and (run_folder / STATE_FILE).is_file():
            interruption.add_note(f"{_reason(run_folder)}, its state is saved")
        raise
    finally:
        share()


def _finish(settings: Settings, panel: Panel, lineage: Mapping[str, Any], checkpoint: Path) -> None:
    """Make a checkpoint of what a training has left."""
    run_folder, store = run_folder_of(checkpoint), store_of(settings)
    result = run_folder / RESULT_FOLDER
    if not (result / "metrics.json").is_file():
        raise FinJEPAError(_reason(run_folder))
    _write_json(result / "normalization.json", {"channels": panel.manifest["channels"]})
    _write_json(result / "lineage.json", {**lineage, "checkpoint": checkpoint.name, "content": content_hash(result)})
    write_text(
        result / "README.md",
        f"# FinJEPA {checkpoint.name}\n\n"
        "Not released yet: the model card is written when the champion gate lets this checkpoint pass.\n",
    )
    assert sorted(p.name for p in result.iterdir()) == sorted(CHECKPOINT_FILES)
    os.replace(result, checkpoint)
    if store is not None:  # the state has served; the curves stay
        records = {file: run_folder / file for file in _RECORDS if (run_folder / file).is_file()}
        store.put(run_folder.parent.name, run_folder.name, records)


def _share(store: Artifacts, run_folder: Path) -> None:
    """Bring a run folder as it is to the store, so that another machine can go on with it.

    The state first: the best model may be newer than it, for it is found again in the same step, but never older.
    """
    with tempfile.TemporaryDirectory(prefix=".tmp-share-", dir=run_folder) as beside:
        files = {STATE_FILE: run_folder / STATE_FILE} | files_of(run_folder)
        still = {}
        for inside, file in files.items():
            if file.is_file():
                still[inside] = Path(shutil.copyfile(file, Path(beside) / f"{len(still)}"))
        store.put(run_folder.parent.name, run_folder.name, still)


def _saved_at(run_folder: Path) -> int:
    files = [*run_folder.rglob(STATE_FILE), run_folder / FAILURE_FILE, run_folder / RESULT_FOLDER / "metrics.json"]
    return max((file.stat().st_mtime_ns for file in files if file.is_file()), default=0)


def _reason(run_folder: Path) -> str:
    """Why a training ended without a result."""
    failure = run_folder / FAILURE_FILE
    if failure.is_file() and (reason := failure.read_text(encoding="utf-8").strip()):
        return reason
    return disk_full(run_folder) or "training ended without a result"


def _recorded(folder: Path) -> tuple[str, str] | None:
    """The id and the content with which a checkpoint was trained; None in checkpoints of older versions."""
    try:
        made = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
        return str(made["checkpoint"]), str(made["content"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, to_json(content, indent=2, sort_keys=True) + "\n")
