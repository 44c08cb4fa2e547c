"""Where heavy work runs: the same results from a process pool as from this process, whoever is killed; nothing of Ray unless it
is asked for."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline import compute
from finjepa_pipeline.settings import Settings
from tests.pipeline.compute_jobs import die, die_once
from tests.system.processes import is_alive
from tests.system.product import wait_until

HERE, POOL = (Settings(home=Path("/nowhere"), compute=f"local:{n}") for n in (1, 2))


def test_results_come_in_order_and_a_worker_that_is_killed_costs_its_work_alone(tmp_path, monkeypatch):
    with compute.map(POOL, die_once, [(tmp_path / f"job-{k}", k == 1) for k in (0, 1, 2, 9)]) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ZeroDivisionError):  # what is raised is raised where its result would be
            next(results)
    assert (tmp_path / "job-1").read_text() == "xx"
    monkeypatch.setattr(compute, "_LOSSES", 1)
    with pytest.raises(FinJEPAError, match="was lost") as told, compute.map(POOL, die, [1, 2]) as results:
        list(results)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_no_worker_outlives_the_process_that_wanted_it(tmp_path, number):
    program = (
        "import sys, pathlib; from finjepa_pipeline import compute; from finjepa_pipeline.settings import Settings;"
        "from tests.pipeline.compute_jobs import sleep\n"
        "if __name__ == '__main__':\n"
        "    settings = Settings(home=pathlib.Path(), compute='local:2')\n"
        "    with compute.map(settings, sleep, [pathlib.Path(sys.argv[1])] * 2) as results:\n"
        "        list(results)\n"
    )
    (tmp_path / "driver.py").write_text(program)
    command = [sys.executable, tmp_path / "driver.py", tmp_path / "worker"]
    driver = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.getcwd()}, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list(tmp_path.glob("worker-*"))) == 2)
    workers = [int(mark.name.split("-")[1]) for mark in tmp_path.glob("worker-*")]
    driver.send_signal(number)
    driver.wait(timeout=20)
    wait_until(lambda: not any(is_alive(pid) for pid in workers))


def test_a_cluster_that_is_not_there_is_one_line():
    reason = "not installed" if importlib.util.find_spec("ray") is None else "no Ray cluster at"
    nowhere = HERE.model_copy(update={"compute": "127.0.0.1:1"})
    with pytest.raises(FinJEPAError, match=reason) as told, compute.map(nowhere, len, ["a"]):
        pass
    assert "\n" not in str(told.value)
