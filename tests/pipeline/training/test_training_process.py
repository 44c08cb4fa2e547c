"""The training process: one in a run folder, none without its parent, its page written; and the points of a sweep."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finjepa_model.config import TrainingConfig, preset
from finjepa_model.errors import FinJEPAError
from finjepa_model.training.run_folder import METRICS_FILE, STATE_FILE, append_record, read_metrics
from finjepa_pipeline.causes import FAILURE_FILE
from finjepa_pipeline.compute import metric_value
from finjepa_pipeline.report.training import TrainingPage
from finjepa_pipeline.training.assets import variants
from finjepa_pipeline.training.checkpoints import for_panel
from finjepa_pipeline.training.process import CONFIG_FILE, RESULT_FOLDER, only_training_in
from tests.pipeline.backtest.handmade_panel import noise, write_panel
from tests.system.processes import is_alive
from tests.system.product import wait_until


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    return write_panel(tmp_path_factory.mktemp("market") / "panel", noise(900, 4))


@pytest.fixture
def run_folder(tmp_path, panel):
    training = TrainingConfig(batch_size=4, n_assets=2, steps_per_epoch=100_000, evaluate_batches=1, log_every=1)
    config = for_panel(replace(preset("tiny"), training=training), panel)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONFIG_FILE).write_text(config.to_json())
    return tmp_path / "run"


@pytest.mark.parametrize(("ranks", "ends"), [(1, "cancelled"), (1, "orphan"), (2, "cancelled")])
def test_a_training_that_is_cancelled_or_loses_its_parent_saves_and_ends(run_folder, panel, ranks, ends):
    command = [sys.executable, "-m", "finjepa_pipeline.training.process", "--panel", str(panel.folder)]
    command += ["--run-folder", str(run_folder), "--ranks", str(ranks)]
    starter = (
        "import subprocess, sys, time; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", starter, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    training = int(parent.stdout.readline())
    try:
        wait_until(lambda: list(read_metrics(run_folder)), 120)
        if ends == "cancelled":
            os.kill(training, signal.SIGTERM)
        else:
            parent.kill()
        wait_until(lambda: (run_folder / FAILURE_FILE).is_file() and not is_alive(training), 25)
    finally:
        parent.kill()
        parent.wait()
    state = torch.load(run_folder / STATE_FILE, weights_only=True)
    assert state["step"] >= 1
    assert not (run_folder / RESULT_FOLDER).exists()
    assert "training stopped at step" in (run_folder / FAILURE_FILE).read_text()


def test_a_run_folder_has_one_training_at_a_time(tmp_path):
    with (
        only_training_in(tmp_path),
        pytest.raises(FinJEPAError, match="another training works in"),
        only_training_in(tmp_path, patience_s=0),
    ):
        pass
    with only_training_in(tmp_path, patience_s=0):
        pass


def test_the_page_of_a_training_is_written_when_there_is_news_and_ends(tmp_path):
    run_folder = tmp_path / "abc.run"
    run_folder.mkdir()
    page = TrainingPage(tmp_path / "page.html", run_folder, preset("tiny"))
    page.update()
    page.end("Done.")
    assert not page.path.exists()  # a checkpoint that was there already
    append_record(run_folder, {"kind": "train", "step": 20, "loss": 3.5, "risk": 0.25})
    append_record(run_folder, {"kind": "validation", "step": 30, "loss": 2.75, "collapse": "none"})
    page.update()
    first = page.path.read_text()
    assert all(text in first for text in ("Step 20 of 120", "2.75", ">risk<", 'http-equiv="refresh"'))
    append_record(run_folder, {"kind": "train", "step": 60, "loss": 2.0})
    with (run_folder / METRICS_FILE).open("a") as file:
        file.write('{"kind": "tra')  # cut by a crash
    page.update()
    assert re.search(r"Step 60 of 120: at most \d+ s left", page.path.read_text())
    page.end("Done.")
    last = page.path.read_text()
    assert "Step 60 of 120. Done." in last
    assert "refresh" not in last


KEYS = st.sampled_from(["training.learning_rate", "model.dim", "loss.recipe", "training.batch_size"])


@given(
    st.dictionaries(KEYS, st.lists(st.sampled_from("abcd"), min_size=1, unique=True), max_size=3),
    st.lists(st.integers(0, 9), min_size=1),
)
def test_every_point_has_every_seed_once(grid, seeds):
    found = variants(grid, seeds)
    points = 1
    for values in grid.values():
        points *= len(values)
    assert len(found) == points * len(set(seeds))
    assert len({json.dumps(changes, sort_keys=True) for changes in found.values()}) == len(found)
    for name, changes in found.items():
        assert set(changes) == {*grid, "training.seed"}
        assert all(f"{key}={changes[key]}" in name for key in grid)


@pytest.mark.parametrize(
    ("grid", "seeds"),
    [({}, []), ({"model.dim": []}, [0]), ({"training.seed": ["1"]}, [0])],
    ids=["seed", "value", "twice"],
)
def test_what_is_no_sweep_is_one_line(grid, seeds):
    with pytest.raises(FinJEPAError, match="seed") as told:
        variants(grid, seeds)
    assert "\n" not in str(told.value)


def test_a_metric_that_is_no_number_of_a_record_is_one_line():
    record = {"kind": "validation", "step": 3, "loss": 0.5, "rank": 3.0}
    assert metric_value(record, "loss") == 0.5
    with pytest.raises(FinJEPAError, match="choose one of loss, rank"):
        metric_value(record, "sharpe")
