"""The training process, one for each rank: started by torchrun, reports to Dagster through Pipes, never imports Dagster.

It ends with status 0 also when training failed for a reason that a user can mend, and leaves that reason in
`failure.txt`: a status of 1 would make torchrun print its own trace over the one clear line.
"""

import argparse
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json, write_text
from finjepa_model.training.trainer import Trainer, TrainingInterruptedError, pick_device
from finjepa_pipeline.causes import explained
from finjepa_pipeline.training.exchange import CONFIG_FILE, FAILURE_FILE, LAUNCHER_PID, RESULT_FOLDER
from finjepa_pipeline.training.guards import end_with, only_training_on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--panel", type=Path, required=True)
    parser.add_argument(
        "--run-folder", type=Path, required=True, help="holds config.json; the state and the result go there"
    )
    arguments = parser.parse_args()
    run_folder: Path = arguments.run_folder
    try:
        device = pick_device(int(os.environ.get("LOCAL_RANK", "0")))
        with pipes() as report, only_training_on(device, run_folder.parent):
            _train(arguments.panel, run_folder, report)
    except Exception as error:
        reason = str(error) if isinstance(error, FinJEPAError | TrainingInterruptedError) else explained(error)
        if reason is None:
            raise
        with contextlib.suppress(OSError):  # of a disk that is full
            (run_folder / FAILURE_FILE).write_text(f"{reason}\n", encoding="utf-8")


def _train(panel_folder: Path, run_folder: Path, report: Any) -> None:
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        dist.init_process_group("nccl" if pick_device().type == "cuda" else "gloo")
    config = FinJEPAConfig.from_json((run_folder / CONFIG_FILE).read_text(encoding="utf-8"))
    panel = Panel.open(panel_folder)
    running = trainer = Trainer(config, panel, run_folder, report)

    def stop(*_: object) -> None:
        running.stop_requested = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if LAUNCHER_PID in os.environ:
        end_with(int(os.environ[LAUNCHER_PID]), stop)
    metrics = trainer.train()
    if ranks > 1:
        dist.destroy_process_group()
    if trainer.rank == 0:
        if config.td.enabled:  # small beside the world model: one process trains it
            from finjepa_model.td.training import TDTrainer  # the id of other trainings leaves its code out

            running = TDTrainer(trainer.model, panel, run_folder, report)
            running.stop_requested = trainer.stop_requested
            metrics["td"] = running.train()
        result = run_folder / RESULT_FOLDER
        trainer.model.save_pretrained(result)
        write_text(result / "metrics.json", to_json(metrics, indent=2, sort_keys=True) + "\n")  # last: it is whole


@contextlib.contextmanager
def pipes() -> Iterator[Any]:
    """Rank 0 tells Dagster how training goes; alone, or on another rank, nobody is told."""
    from dagster_pipes import DAGSTER_PIPES_CONTEXT_ENV_VAR, open_dagster_pipes

    if int(os.environ.get("RANK", "0")) > 0 or DAGSTER_PIPES_CONTEXT_ENV_VAR not in os.environ:
        yield None
        return
    with open_dagster_pipes() as pipes:

        def report(record: dict[str, Any]) -> None:
            values = ", ".join(f"{name} {value:.4g}" for name, value in record.items() if isinstance(value, float))
            pipes.log.info(f"{record['kind']} step {record['step']}: {values}")

        yield report


if __name__ == "__main__":
    main()
