"""A run whose process is gone is ended and gives back its pools; one that lives is waited for, and never ended; a step ends with
its run, and only a crash is tried again."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.runs import (
    CRASH_RETRIES,
    LOCK,
    end_lost_runs,
    final,
    holder,
    is_held,
    lock_of,
    locked,
    wait_for_pool,
)

HERE, ALIVE = socket.gethostname(), "00000000-0000-0000-0000-000000000001"
SETUP = {
    "concurrency": {"pools": {"granularity": "op", "default_limit": 1}},
    "run_launcher": {"module": "finjepa_pipeline.runs", "class": "WatchedRunLauncher"},
}


@pytest.fixture
def instance():
    with dg.instance_for_test(overrides=SETUP) as instance:
        instance.event_log_storage.initialize_concurrency_limit_to_default("duckdb")
        yield instance


def hold(folder: Path, ready: Any) -> None:
    with locked(folder, ALIVE):
        ready.set()
        time.sleep(600)


@pytest.fixture
def command(instance) -> Iterator[Any]:
    """A living command that holds the lock of the run `ALIVE`."""
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    process = fork.Process(target=hold, args=(lock_of(instance, ALIVE).parent, ready))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def started(instance: dg.DagsterInstance, machine: str | None = None, run_id: str | None = None) -> dg.DagsterRun:
    """A run of a command on a machine, or of the UI."""
    tags = {} if machine is None else {LOCK: machine}
    return instance.create_run_for_job(
        dg.job(name="ingest")(lambda: None), status=dg.DagsterRunStatus.STARTED, tags=tags, run_id=run_id
    )


def taken_by(instance: dg.DagsterInstance, pid: int) -> dg.DagsterRun:
    """A run that says of itself what a run of the UI says when its process takes it."""
    run = started(instance)
    instance.report_engine_event(f"Started process for run (pid: {pid}).", run, EngineEventData.in_process(pid))
    return run


def claim(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    return instance.event_log_storage.claim_concurrency_slot("duckdb", run.run_id, "ingest_prices").is_claimed


def has_failed(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    found = instance.get_run_by_id(run.run_id)
    return found is not None and found.status == dg.DagsterRunStatus.FAILURE


def lives(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    return instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING


def test_a_lock_is_held_as_long_as_its_process_lives(instance, tmp_path, command):
    lock = lock_of(instance, ALIVE)
    assert is_held(lock) is True
    assert f"process {command.pid}" in holder(lock)
    command.kill()
    command.join()
    assert is_held(lock) is False
    lock.unlink()
    assert is_held(lock) is None
    with locked(tmp_path, "mine") as tags:
        assert is_held(tmp_path / "mine.lock") is True
        assert tags == {LOCK: HERE}
    assert not (tmp_path / "mine.lock").exists()


def test_a_run_of_another_machine_counts_as_living_where_machines_share_a_database(instance, monkeypatch):
    run = started(instance, "another machine")
    monkeypatch.setattr("finjepa_pipeline.runs.SqliteRunStorage", ())  # it is PostgreSQL then
    assert end_lost_runs(instance) == []
    mine = started(instance, HERE)
    assert len(end_lost_runs(instance)) == 1
    assert has_failed(instance, mine)
    monkeypatch.undo()  # a home that was moved here, or restored
    assert len(end_lost_runs(instance)) == 1
    assert has_failed(instance, run)


def test_a_killed_command_gives_back_the_pool_and_one_that_waited_does_not_keep_its_place(instance):
    dead, waited = started(instance, HERE), started(instance, HERE)
    assert claim(instance, dead)
    assert not claim(instance, waited)  # it is next in the queue, and dead as well
    assert len(end_lost_runs(instance)) == 2
    assert has_failed(instance, dead)
    assert has_failed(instance, waited)
    for end in (instance.report_run_failed, lambda run: instance.delete_run(run.run_id)):
        run = started(instance)  # one that ends without giving back its slot
        assert claim(instance, run)
        end(run)
        assert end_lost_runs(instance) == []
    assert claim(instance, started(instance))


def test_a_living_run_is_never_ended_and_one_of_the_ui_whose_process_died_is(instance, command):
    alive = [started(instance, HERE, ALIVE), taken_by(instance, os.getpid())]
    starting = instance.create_run_for_job(dg.job(name="nightly")(lambda: None), status=dg.DagsterRunStatus.STARTING)
    assert claim(instance, alive[1])
    assert end_lost_runs(instance) == []
    assert not any(has_failed(instance, run) for run in (*alive, starting))
    assert not claim(instance, started(instance))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        run = taken_by(instance, process.pid)
        assert lives(instance, run)
        process.kill()
        time.sleep(0.2)  # and not waited for yet: a zombie
        assert not lives(instance, run)
    assert len(end_lost_runs(instance)) == 1
    assert has_failed(instance, run)


def test_a_process_that_came_later_under_the_same_number_is_another(instance, monkeypatch):
    run = taken_by(instance, os.getpid())
    assert lives(instance, run)
    told = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    yesterday = [entry._replace(timestamp=entry.timestamp - 86_400) for entry in told]
    monkeypatch.setattr(instance, "all_logs", lambda *_, **__: yesterday)
    assert not lives(instance, run)


def test_a_run_of_another_machine_is_not_judged_by_the_processes_of_this_one(instance):
    run = taken_by(instance, pid=2**22 + 1)  # larger than any
    assert not lives(instance, run)
    for host, expected in (("127.0.0.1", False), ("code-server", True)):
        instance.add_run_tags(run.run_id, {GRPC_INFO_TAG: json.dumps({"host": host, "port": 4266})})
        found = instance.get_run_by_id(run.run_id)
        assert found is not None
        assert lives(instance, found) is expected


def test_a_living_holder_is_waited_for_until_a_deadline_a_signal_or_its_death(instance, command, monkeypatch):
    holding, mine = started(instance, HERE, ALIVE), started(instance)
    assert claim(instance, holding)
    assert not claim(instance, mine)
    said: list[str] = []

    def wait(patience_s: float) -> None:
        wait_for_pool(instance, "duckdb", mine.run_id, "ingest_prices", patience_s, said.append)

    with pytest.raises(FinJEPAError, match=rf"process {command.pid}.*'duckdb'.*FINJEPA_WAIT_MINUTES"):
        wait(0.3)
    assert len(said) == 1
    assert str(command.pid) in said[0]
    asked = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr("finjepa_pipeline.runs.asked", asked)
        threading.Timer(0.3, asked.set).start()
        with pytest.raises(KeyboardInterrupt):
            wait(30)
    monkeypatch.setattr("finjepa_pipeline.runs._LOOK_S", 0.1)
    threading.Timer(0.3, command.kill).start()
    wait(30)
    assert claim(instance, mine)
    assert has_failed(instance, holding)


def test_an_exception_is_not_tried_again_whatever_the_policy():
    calls = []

    @dg.asset
    @final
    def broken() -> None:
        calls.append(1)
        raise FinJEPAError("the prices are upside down")

    @dg.multi_asset(specs=[dg.AssetSpec("also_broken")])
    @final
    def broken_generator() -> Iterator[dg.MaterializeResult]:
        calls.append(2)
        yield dg.MaterializeResult("also_broken")
        raise ValueError("a bug")

    job = dg.define_asset_job("both", op_retry_policy=CRASH_RETRIES)
    defs = dg.Definitions(assets=[broken, broken_generator], jobs=[job])
    result = defs.resolve_job_def("both").execute_in_process(raise_on_error=False)
    assert sorted(calls) == [1, 2]
    told = {event.step_key: event.step_failure_data for event in result.all_events if event.is_step_failure}
    assert told["broken"].user_failure_data.description == "the prices are upside down"
    assert told["broken_generator"].user_failure_data.description == "ValueError: a bug"


def test_numbers_of_metadata_have_four_digits_and_nothing_else_changes():
    exact = {"share": 0.123456789, "rows": 123456789, "nested": {"share": 0.123456789}, "seconds": 12345.678}

    @dg.asset(check_specs=[dg.AssetCheckSpec("sound", asset="made")])
    @final
    def made() -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        yield dg.MaterializeResult(metadata=exact, data_version=dg.DataVersion("v1"))
        yield dg.AssetCheckResult(passed=False, check_name="sound", metadata=exact, description="why")

    result = dg.materialize([made])
    [one], [check] = result.asset_materializations_for_node("made"), result.get_asset_check_evaluations()
    for metadata in (one.metadata, check.metadata):
        shown = {name: metadata[name].value for name in exact}
        assert shown == exact | {"share": 0.1235, "seconds": 12346.0}
    assert (one.tags["dagster/data_version"], check.passed, check.description) == ("v1", False, "why")


def _run(method: str, pids) -> None:
    step = multiprocessing.get_context(method).Process(target=_step, args=(pids,))
    step.start()
    time.sleep(60)


def _step(pids) -> None:
    @final
    def asset() -> None:
        pids.send((os.getpid(), os.getppid()))
        time.sleep(60)

    asset()


@pytest.mark.parametrize(("method", "victim"), [("spawn", "run"), ("forkserver", "run"), ("forkserver", "server")])
def test_a_step_ends_with_the_process_that_runs_its_run(method, victim):
    ours, theirs = multiprocessing.Pipe(duplex=False)
    run = multiprocessing.get_context("spawn").Process(target=_run, args=(method, theirs))
    run.start()
    assert ours.poll(60)
    step, server = ours.recv()
    if victim == "server":
        os.kill(server, signal.SIGKILL)
    else:
        run.kill()
        run.join()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{step}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{step}")
    run.kill()
    run.join()
