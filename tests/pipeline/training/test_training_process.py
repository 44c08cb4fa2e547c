"""The training process: one on a device, none without its launcher, stopped with everything saved, told as it goes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from finjepa_model.config import TrainingConfig, preset
from finjepa_model.errors import FinJEPAError
from finjepa_model.training.state import METRICS_FILE, STATE_FILE, append_record, read_metrics
from finjepa_pipeline.training.exchange import CONFIG_FILE, FAILURE_FILE, LAUNCHER_PID, RESULT_FOLDER
from finjepa_pipeline.training.guards import only_training_on
from finjepa_pipeline.training.live import watched
from finjepa_pipeline.training.run import for_panel
from tests.pipeline.backtest.handmade_panel import noise, write_panel


@pytest.fixture
def run_folder(tmp_path):
    panel = write_panel(tmp_path / "panel", noise(900, 4))
    training = TrainingConfig(batch_size=4, n_assets=2, steps_per_epoch=100_000, evaluate_batches=1, log_every=1)
    config = for_panel(replace(preset("tiny"), training=training), panel)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONFIG_FILE).write_text(config.to_json())
    return tmp_path / "run"


def _start(run_folder, launcher: int) -> subprocess.Popen:
    """A training under way."""
    command = [sys.executable, "-m", "finjepa_pipeline.training.launch"]
    command += ["--panel", str(run_folder.parent / "panel"), "--run-folder", str(run_folder)]
    environment = os.environ | {LAUNCHER_PID: str(launcher), "OMP_NUM_THREADS": "1"}
    training = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (run_folder / METRICS_FILE).is_file() or not list(read_metrics(run_folder)):
        assert training.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return training


def _state_is_saved(run_folder) -> bool:
    state = torch.load(run_folder / STATE_FILE, weights_only=True)
    return state["step"] >= 1 and not (run_folder / RESULT_FOLDER).exists()


def test_a_training_that_is_cancelled_saves_and_says_so(run_folder):
    training = _start(run_folder, os.getpid())
    training.send_signal(signal.SIGTERM)
    assert training.wait(timeout=15) == 0  # Dagster waits 20 s before it kills
    assert _state_is_saved(run_folder)
    assert "training stopped at step" in (run_folder / FAILURE_FILE).read_text()


def test_a_training_whose_launcher_was_killed_saves_and_ends(run_folder):
    launcher = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    training = _start(run_folder, launcher.pid)
    launcher.kill()  # and nobody waits for it: a zombie is not alive
    assert training.wait(timeout=15) == 0
    assert _state_is_saved(run_folder)
    launcher.wait()


def test_a_device_has_one_training_at_a_time(tmp_path):
    device = torch.device("cpu")
    with (
        only_training_on(device, tmp_path),
        pytest.raises(FinJEPAError, match="another training holds"),
        only_training_on(device, tmp_path, patience_s=0),
    ):
        pass
    with only_training_on(device, tmp_path, patience_s=0):
        pass


def test_records_are_told_once_and_curves_are_thinned(tmp_path):
    def write(kind, step):
        append_record(tmp_path, {"kind": kind, "step": step, "loss": float(np.exp(-step))})

    write("train", 100)  # of a run that was interrupted
    told = []
    with watched(tmp_path, 2000, told.append):
        for step in range(101, 141):
            write("train", step)
        write("validation", 120)
        (tmp_path / METRICS_FILE).open("a").write(json.dumps({"kind": "train", "step": 150})[:10])  # cut by a crash
    assert [r["step"] for r in told if r["kind"] == "train"] == [110, 120, 130, 140]
    assert [r["step"] for r in told if r["kind"] == "validation"] == [120]
