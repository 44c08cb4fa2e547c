"""A checkpoint is built again, bit by bit, from its lineage; stopped on the way, nothing of it goes on."""

import json
import shutil
import signal

import duckdb
import pytest

from tests.system import processes
from tests.system.product import finjepa, is_one_line, quick_training, start, wait_until, works, write_prices

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A home with a checkpoint, the checkpoint's name, and the folder of its prices."""
    folder = tmp_path_factory.mktemp("trained")
    home, prices = folder / "home", write_prices(folder / "prices")
    works(home, "train", "--data-source", "files", "--path", str(prices), *quick_training())
    return home, json.loads((home / "checkpoints" / "current.json").read_text())["checkpoint"], prices


def test_a_checkpoint_is_rebuilt_bit_by_bit_from_its_lineage(trained, tmp_path):
    home, current, prices = trained
    assert "equal, bit by bit" in works(home, "reproduce", current)
    folder = shutil.copytree(home / "checkpoints" / current, tmp_path / "moved")
    fewer = shutil.copytree(prices, tmp_path / "prices")
    next(fewer.iterdir()).unlink()
    lineage = json.loads((folder / "lineage.json").read_text())
    lineage["build"]["source"]["path"] = str(fewer)
    (folder / "lineage.json").write_text(json.dumps(lineage))
    done = finjepa(tmp_path / "empty", "reproduce", str(folder))
    is_one_line(done.returncode, done.stderr, "no longer what they were")


def test_the_model_of_a_fold_is_rebuilt_bit_by_bit_from_its_lineage(trained):
    home, current, _ = trained
    folds = ["--folds", "1", "--held-back", "0", "--planner", "mppi", "--controls", "none"]
    works(home, "backtest", *folds, *quick_training())
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as con:
        ((plan, fold, name),) = con.execute("SELECT plan, fold, checkpoint FROM walk_forward_folds").fetchall()
    lineage = json.loads((home / "checkpoints" / name / "lineage.json").read_text())
    assert lineage["data"]["fold"] == f"{plan}:{fold}"
    assert json.loads((home / "checkpoints" / "current.json").read_text())["checkpoint"] == current != name
    assert "equal, bit by bit" in works(home, "reproduce", name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_reproduce_leaves_no_training_behind(trained, tmp_path, number):
    home = shutil.copytree(trained[0], tmp_path / "home")
    shutil.rmtree(home / "reproductions", ignore_errors=True)
    rebuilding = start(home, "reproduce", trained[1])

    def trains() -> bool:
        assert rebuilding.poll() is None
        return any("training.process" in processes.command_of(pid) for pid in processes.of_session(rebuilding.pid))

    wait_until(trains, every=0.05)
    rebuilding.send_signal(number)  # the parent alone
    rebuilding.wait(timeout=60)
    wait_until(lambda: not processes.of_session(rebuilding.pid), 0.5 if number == signal.SIGTERM else 45)
