"""`metrics.jsonl`: one JSON object a record, appended during a training; and the names of the files beside it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finjepa_model.files import to_json, write_text

METRICS_FILE = "metrics.jsonl"


STATE_FILE = "trainer_state.pt"  # what `training/state.py` keeps


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
