"""The same jobs on a Ray cluster of two nodes, each with its own processes and object store: the results are those of one
machine, whoever is killed, and a run that is cancelled leaves nothing behind.

The second node does not see the homes, where the machine lets a process hide a folder (`unshare`): it has a mount namespace of
its own, and gets panels, checkpoints and states from an S3-compatible server.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import duckdb
import pytest
import torch

from tests.pipeline.object_store import BUCKET, object_store
from tests.system.dagster_server import ENDED, DagsterServer
from tests.system.processes import with_texts as processes
from tests.system.product import (
    COMMANDS,
    QUICK,
    ROOT,
    environment,
    finjepa,
    quick_training,
    wait_until,
    works,
    write_prices,
)
from tests.system.ray_cluster import Cluster, equal_rows, has_saved

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("ray", "s3fs", "nanio")),
        reason="needs the extras ray and s3, and nanio",
    ),
]
OFTEN = {"training.steps_per_epoch": "120", "training.checkpoint_every": "10", "training.log_every": "5"}
TRAINING = [*quick_training(**OFTEN), "--processes", "2"]
FOLDS = ["--folds", "2", "--held-back", "0", *quick_training()[2:], "--planner", "mppi"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = Path("/tmp") / f"finjepa-ray-{os.getpid()}"  # short: Ray's sockets have a limit of 107 characters
    with object_store(folder.with_name(f"{folder.name}-s3")) as store:
        nodes = Cluster(folder, store, tmp_path_factory.getbasetemp())
        try:
            nodes.add()
            nodes.add()
            yield nodes
        finally:
            nodes.end()
            shutil.rmtree(folder.with_name(f"{folder.name}-s3"), ignore_errors=True)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A home in which everything was done on one machine, and its prices."""
    folder = tmp_path_factory.mktemp("local")
    source = ["--data-source", "files", "--path", str(write_prices(folder / "prices"))]
    for command in (["train", *source, *TRAINING], ["backtest", "--planner", "mppi", "--controls", "ewma"]):
        works(folder / "home", *command)
    return folder / "home", source


def _start(home: Path, cluster: Cluster, *arguments: str, **more: str) -> subprocess.Popen[str]:
    surroundings = environment(home) | cluster.environment | {"FINJEPA_COMPUTE": cluster.address} | more
    return subprocess.Popen(
        [COMMANDS / "finjepa", *arguments], env=surroundings, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def _until(process: subprocess.Popen[str], ready, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_training_that_loses_a_rank_and_a_node_gives_the_checkpoint_of_one_machine(cluster, local, tmp_path):
    home, source = local
    run = _start(tmp_path, cluster, "train", *source, *TRAINING)
    _until(run, has_saved(tmp_path, 20))
    os.kill(cluster.workers("ray::RayTrainWorker")[-1], signal.SIGKILL)
    _until(run, has_saved(tmp_path, 60))
    cluster.lose(cluster.nodes[-1])
    cluster.add()
    output = run.communicate(timeout=400)[0]
    assert run.returncode == 0, output[-3000:]
    (mine,), (theirs,) = (list(place.glob("checkpoints/*/model.safetensors")) for place in (tmp_path, home))
    assert mine.read_bytes() == theirs.read_bytes()
    assert mine.parent.name == theirs.parent.name


def test_a_backtest_whose_worker_is_killed_gives_the_leaderboard_of_one_machine(cluster, local, tmp_path):
    home, _ = local
    shutil.copytree(home, tmp_path / "home")
    with duckdb.connect(str(tmp_path / "home" / "warehouse.duckdb")) as con:
        for table in ("backtest_returns", "backtest_decisions", "backtest_replays", "forecast_quality", "leaderboard"):
            con.execute(f"DELETE FROM {table}")
    run = _start(tmp_path / "home", cluster, "backtest", "--planner", "mppi", "--controls", "ewma")
    _until(run, lambda: cluster.workers("ray::_call"))
    os.kill(cluster.workers("ray::_call")[0], signal.SIGKILL)
    output = run.communicate(timeout=300)[0]
    assert run.returncode == 0, output[-3000:]
    equal_rows(home, tmp_path / "home")


def test_folds_side_by_side_are_folds_one_after_the_other(cluster, local, tmp_path):
    home, _ = local
    for place in ("here", "there"):
        shutil.copytree(home, tmp_path / place)
    done = finjepa(tmp_path / "here", "backtest", *FOLDS, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    run = _start(tmp_path / "there", cluster, "backtest", *FOLDS)
    output = run.communicate(timeout=600)[0]
    assert run.returncode == 0, output[-3000:]
    assert "2 trainings, as trials on" in output
    equal_rows(tmp_path / "here", tmp_path / "there")


def test_a_bad_trial_is_stopped_early_and_a_good_one_is_the_training_it_would_be_alone(cluster, local, tmp_path):
    home, source = local
    shutil.copytree(home, tmp_path / "home")
    rates = "training.learning_rate=0.003,0.002,0.0000001"
    shared = [part for key, value in (QUICK | {"training.epochs": "4"}).items() for part in ("--set", f"{key}={value}")]
    run = _start(tmp_path / "home", cluster, "sweep", "--preset", "tiny", *shared, "--grid", rates)
    output = run.communicate(timeout=400)[0]
    assert run.returncode == 0, output[-3000:]
    rows = [line.split() for line in output.splitlines() if line.strip().startswith("training.learning_rate=")]
    ends = {row[0].removesuffix(","): row[3:] for row in rows}
    assert "early" in ends["training.learning_rate=0.0000001"][-1], output[-3000:]
    name, checkpoint = next((name, end[-1]) for name, end in ends.items() if end[-1] != "early")
    alone = finjepa(tmp_path / "alone", "train", *source, "--preset", "tiny", "--seed", "0", *shared, "--set", name)
    assert alone.returncode == 0, alone.stderr[-3000:]
    mine, theirs = (tmp_path / place / "checkpoints" / checkpoint for place in ("home", "alone"))
    assert (mine / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_training_that_is_cancelled_leaves_no_process(cluster, local, tmp_path, number):
    _, source = local
    long = quick_training(**OFTEN | {"training.steps_per_epoch": str(9000 + number)})
    run = _start(tmp_path, cluster, "train", *source, *long, "--processes", "2")
    _until(run, has_saved(tmp_path, 10))
    if number == signal.SIGINT:
        os.killpg(run.pid, number)
    else:
        run.send_signal(number)
    run.communicate(timeout=60)
    cluster.wait_until_idle()
    wait_until(lambda: not processes(str(tmp_path)), 60)
    assert not list(tmp_path.glob("checkpoints/*/model.safetensors"))


def test_runs_that_are_terminated_in_the_ui_leave_no_process_and_go_on(cluster, local, tmp_path):
    theirs, source = local
    home, changes = tmp_path / "home", QUICK | {"training.steps_per_epoch": "120", "training.checkpoint_every": "10"}
    training = {
        "ingest_prices": {"data_source": "files", "path": source[-1]},
        "world_model": {"preset": "tiny", "overrides": changes, "processes": 2},
    }
    judging = {"planner_backtests": {"planner": "mppi", "controls": "ewma"}}
    shutil.copytree(theirs, home, symlinks=True)
    shutil.rmtree(home / "checkpoints")
    with duckdb.connect(str(home / "warehouse.duckdb")) as con:
        for table in ("backtest_returns", "backtest_decisions", "backtest_replays", "forecast_quality", "leaderboard"):
            con.execute(f"DELETE FROM {table}")
    on_ray = cluster.environment | {
        "FINJEPA_COMPUTE": cluster.address,
        "FINJEPA_ARTIFACTS": f"s3://{BUCKET}/of-the-ui",  # where nobody has trained it yet
    }
    with DagsterServer(home, environment(home) | on_ray) as server:
        run = server.launch_job("train", training)
        _until_running(server, run, has_saved(home, 10))
        server.terminate(run)
        assert server.wait(run) == "CANCELED"
        cluster.wait_until_idle()
        (folder,) = home.glob("checkpoints/*.run")
        saved = torch.load(folder / "trainer_state.pt", weights_only=False)["step"]
        assert saved >= 10
        assert not list(home.glob("checkpoints/*/model.safetensors"))
        records = (folder / "metrics.jsonl").read_text().splitlines()
        run = server.launch_job("train", training)
        assert server.wait(run) == "SUCCESS", server.log.read_text()[-3000:]
        # seconds are in the records: what was trained before was not trained again
        done = [line for line in records if json.loads(line)["step"] <= saved]
        assert done
        assert (folder / "metrics.jsonl").read_text().splitlines()[: len(done)] == done
        (mine,), (other,) = (list(place.glob("checkpoints/*/model.safetensors")) for place in (home, theirs))
        assert mine.read_bytes() == other.read_bytes()

        run = server.launch_job("backtest", judging)
        _until_running(server, run, lambda: cluster.workers("ray::_call"))
        server.terminate(run)
        assert server.wait(run) == "CANCELED"
        cluster.wait_until_idle()
        run = server.launch_job("backtest", judging)
        assert server.wait(run) == "SUCCESS", server.log.read_text()[-3000:]
    assert not server.left_behind
    equal_rows(theirs, home)


def _until_running(server: DagsterServer, run: str, ready, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert server.status(run) not in ENDED, server.log.read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
