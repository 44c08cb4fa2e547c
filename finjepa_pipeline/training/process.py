"""The training process: one for each rank, started by `compute.train` on this machine; on a Ray cluster the same function trains.

It never imports Dagster. It ends with status 0 also when training failed for a reason that a user can mend, and leaves that
reason in `failure.txt`.
"""

import argparse
import contextlib
import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import write_json
from finjepa_model.training.trainer import Report, Trainer, TrainingInterruptedError, pick_device
from finjepa_pipeline.causes import FAILURE_FILE, explained
from finjepa_pipeline.interrupts import end_with

CONFIG_FILE = "config.json"  # in the run folder: what is to be trained
RESULT_FOLDER = "result"  # in the run folder: what becomes the checkpoint

_LOCK_PATIENCE_S = 30.0


def train(panel_folder: Path, run_folder: Path, report: Report | None, begun: Callable[[Any], object]) -> str | None:
    """Train what `config.json` in the run folder says, as one rank; rank 0 puts what becomes the checkpoint into `result`.

    Args:
        report: called on every rank with every record.
        begun: called with each trainer that begins: `stop_requested` stops it.

    Returns:
        Why training failed, of a reason that a user can mend and that all ranks have met; None where it went well.
    """
    try:
        config = FinJEPAConfig.from_json((run_folder / CONFIG_FILE).read_text(encoding="utf-8"))
        panel = Panel.open(panel_folder)
        trainer = Trainer(config, panel, run_folder, report)
        begun(trainer)
        metrics = trainer.train()
        if trainer.rank == 0:
            if config.td.enabled:  # small beside the world model: one process trains it
                from finjepa_model.td.training import TDTrainer  # the id of other trainings leaves its code out

                td = TDTrainer(trainer.model, panel, run_folder, report if trainer.ranks == 1 else None)
                begun(td)
                metrics["td"] = td.train()
            result = run_folder / RESULT_FOLDER
            trainer.model.save_pretrained(result)
            write_json(result / "metrics.json", metrics)  # last: it is whole
    except (FinJEPAError, TrainingInterruptedError) as error:
        return str(error)
    return None


def main() -> None:
    """On this machine: one process, or as torchrun starts them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--panel", type=Path, required=True)
    parser.add_argument("--run-folder", type=Path, required=True, help="holds config.json; state and result go there")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument(
        "--parent", type=int, default=os.getppid(), help="process without which training must not go on"
    )
    arguments = parser.parse_args()
    if arguments.ranks == 1:
        rank(arguments.panel, arguments.run_folder, arguments.parent)
        return
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.WARNING)  # its traces, when it is asked to stop
    end_with(arguments.parent, lambda: os.kill(os.getpid(), signal.SIGTERM))
    one_machine = LaunchConfig(
        1, 1, arguments.ranks, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, start_method="spawn"
    )
    try:
        elastic_launch(one_machine, rank)(arguments.panel, arguments.run_folder, os.getpid())
    except (ChildFailedError, SignalException, KeyboardInterrupt):
        sys.exit(1)  # ranks have said why, and saved their state


def rank(panel_folder: Path, run_folder: Path, parent: int) -> None:
    """One rank on this machine: it saves and ends on a signal, and when the process that started it is gone."""
    running: list[Any] = []
    asked = threading.Event()

    def stop(*_: object) -> None:
        asked.set()
        for trainer in running:
            trainer.stop_requested = True

    def begun(trainer: Any) -> None:
        running.append(trainer)
        trainer.stop_requested |= asked.is_set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    end_with(parent, stop)
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group("nccl" if pick_device().type == "cuda" else "gloo")
        with only_training_in(run_folder) if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext():
            failure = train(panel_folder, run_folder, None, begun)
    except Exception as error:
        failure = str(error) if isinstance(error, FinJEPAError) else explained(error)
        if failure is None:
            raise
    if failure is not None:
        with contextlib.suppress(OSError):  # of a disk that is full
            (run_folder / FAILURE_FILE).write_text(f"{failure}\n", encoding="utf-8")
    if dist.is_initialized():
        if asked.is_set():
            os._exit(0)  # at once: leaving the process group takes up to half a minute, and a cancelled step waits 20 s
        dist.destroy_process_group()


@contextlib.contextmanager
def only_training_in(run_folder: Path, patience_s: float = _LOCK_PATIENCE_S) -> Iterator[None]:
    """Hold the lock of a run folder: the training of a command that was killed may still be saving its state there. Raises where
    another training still holds it after `patience_s`."""
    deadline = time.monotonic() + patience_s
    with (run_folder / ".lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise FinJEPAError(f"another training works in {run_folder}; wait for it, or stop it") from error
                time.sleep(0.5)
        yield


if __name__ == "__main__":
    main()
