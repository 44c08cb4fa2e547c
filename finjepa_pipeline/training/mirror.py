"""The state of a training that is under way, in the store of artefacts as well: another machine can go on with it."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from finjepa_model.errors import FinJEPAError
from finjepa_model.training.state import METRICS_FILE, STATE_FILE
from finjepa_pipeline.store import Artifacts, files_of
from finjepa_pipeline.training.exchange import CONFIG_FILE, FAILURE_FILE, RESULT_FOLDER
from finjepa_pipeline.training.polling import repeatedly

RECORD_FILES = (CONFIG_FILE, METRICS_FILE)


@contextlib.contextmanager
def mirrored(store: Artifacts | None, run_folder: Path) -> Iterator[None]:
    """While the block runs, every state that training saves goes to the store, and once more what is there at its end.

    A store that fails meanwhile does not stop the training: the next state is tried again, and the last one has to arrive.
    """
    if store is None:
        yield
        return
    seen = _saved_at(run_folder)

    def send_new() -> None:
        nonlocal seen
        now = _saved_at(run_folder)
        if now != seen:
            send(store, run_folder)
            seen = now

    def try_to_send_new() -> None:
        with contextlib.suppress(FinJEPAError):
            send_new()

    try:
        with repeatedly(try_to_send_new, "training-mirror"):
            yield
    finally:
        send_new()


def send(store: Artifacts, run_folder: Path) -> int:
    """Bring a run folder as it is to the store; returns the bytes that were sent.

    The state first: the best model may be newer than it, for it is found again in the same step, but never older.
    """
    with tempfile.TemporaryDirectory(prefix=".tmp-mirror-", dir=run_folder) as beside:
        files = {STATE_FILE: run_folder / STATE_FILE} | files_of(run_folder)
        still = {}
        for inside, file in files.items():
            if file.suffix == ".log":  # it grows while it is sent, and nobody needs it elsewhere
                continue
            copy = still[inside] = Path(beside) / f"{len(still)}"
            try:
                if inside in RECORD_FILES:  # they grow where they are
                    shutil.copyfile(file, copy)
                else:  # written beside its place and renamed into it, so that a second name holds it as it is
                    _link(file, copy)
            except FileNotFoundError:
                del still[inside]
        return store.put(run_folder.parent.name, run_folder.name, still)


def _link(file: Path, copy: Path) -> None:
    try:
        os.link(file, copy)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without second names
        shutil.copyfile(file, copy)


def _saved_at(run_folder: Path) -> int:
    files = [*run_folder.rglob(STATE_FILE), run_folder / FAILURE_FILE, run_folder / RESULT_FOLDER / "metrics.json"]
    return max((file.stat().st_mtime_ns for file in files if file.is_file()), default=0)
