"""Whether the process of a run lives is seen, so that a night whose every process was killed does not stand in the way."""

import json
import multiprocessing
import os
import subprocess
import sys
import time

import dagster as dg
import pytest
from dagster import DagsterEventType
from dagster._core.events import EngineEventData
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

from finjepa_pipeline.runs import final

WATCHED = {"run_launcher": {"module": "finjepa_pipeline.runs", "class": "WatchedRunLauncher"}}


@pytest.fixture
def instance():
    with dg.instance_for_test(overrides=WATCHED) as instance:
        yield instance


def taken_by(instance: dg.DagsterInstance, pid: int) -> dg.DagsterRun:
    """A run that says of itself what a run says when its process takes it."""
    run = instance.create_run_for_job(dg.job(name="nightly")(lambda: None), status=dg.DagsterRunStatus.STARTED)
    instance.report_engine_event(f"Started process for run (pid: {pid}).", run, EngineEventData.in_process(pid))
    return run


def test_a_run_is_alive_as_long_as_its_process(instance):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        run = taken_by(instance, process.pid)
        assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
        process.kill()
        time.sleep(0.2)  # and not waited for yet: a zombie
        assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.FAILED
    assert str(process.pid) in str(instance.run_launcher.check_run_worker_health(run))


def test_a_process_that_came_later_under_the_same_number_is_another(instance, monkeypatch):
    run = taken_by(instance, os.getpid())
    assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
    told = instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)
    yesterday = [entry._replace(timestamp=entry.timestamp - 86_400) for entry in told]
    monkeypatch.setattr(instance, "all_logs", lambda *_, **__: yesterday)
    assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.FAILED


def test_a_run_of_another_machine_is_not_judged_by_the_processes_of_this_one(instance):
    run = taken_by(instance, pid=2**22 + 1)  # larger than any
    assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.FAILED
    for host, status in (("127.0.0.1", WorkerStatus.FAILED), ("code-server", WorkerStatus.RUNNING)):
        instance.add_run_tags(run.run_id, {GRPC_INFO_TAG: json.dumps({"host": host, "port": 4266})})
        assert instance.run_launcher.check_run_worker_health(instance.get_run_by_id(run.run_id)).status == status


def test_a_run_in_the_process_of_a_command_is_seen_as_well(instance):
    seen = []

    @dg.asset
    def look(context: dg.AssetExecutionContext) -> None:
        seen.append(instance.run_launcher.check_run_worker_health(context.run).status)

    assert dg.materialize([look], instance=instance).success
    assert seen == [WorkerStatus.RUNNING]


def _run(pid_of_step) -> None:
    step = multiprocessing.get_context("spawn").Process(target=_step, args=(pid_of_step,))
    step.start()
    time.sleep(60)


def _step(pid_of_step) -> None:
    @final
    def asset() -> None:
        pid_of_step.send(os.getpid())
        time.sleep(60)

    asset()


def test_a_step_ends_with_the_process_that_runs_its_run():
    ours, theirs = multiprocessing.Pipe(duplex=False)
    run = multiprocessing.get_context("spawn").Process(target=_run, args=(theirs,))
    run.start()
    assert ours.poll(30)
    step = ours.recv()
    os.kill(step, 0)
    run.kill()
    run.join()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{step}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{step}")
