"""A run whose process is gone is ended and gives back its pools; one that lives is waited for, and never ended."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import dagster as dg
import pytest
from dagster._core.events import EngineEventData

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline import interrupts
from finjepa_pipeline.runs import LOCK, end_lost_runs, holder, is_held, lock_of, locked, wait_for_pool

HERE, ALIVE = socket.gethostname(), "00000000-0000-0000-0000-000000000001"
POOLS = {"concurrency": {"pools": {"granularity": "op", "default_limit": 1}}}
HOLD = """
import sys
from pathlib import Path
from finjepa_pipeline.runs import locked
with locked(Path(sys.argv[1]), sys.argv[2]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def instance():
    with dg.instance_for_test(overrides=POOLS) as instance:
        instance.event_log_storage.initialize_concurrency_limit_to_default("duckdb")
        yield instance


@pytest.fixture
def command(instance) -> Iterator[subprocess.Popen]:
    """A living command that holds the lock of the run `alive`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, lock_of(instance, ALIVE).parent, ALIVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def started(instance: dg.DagsterInstance, machine: str | None = None, run_id: str | None = None) -> dg.DagsterRun:
    tags = {} if machine is None else {LOCK: machine}
    return instance.create_run_for_job(
        dg.job(name="ingest")(lambda: None), status=dg.DagsterRunStatus.STARTED, tags=tags, run_id=run_id
    )


def claim(instance: dg.DagsterInstance, run: dg.DagsterRun, step: str = "ingest_prices") -> bool:
    return instance.event_log_storage.claim_concurrency_slot("duckdb", run.run_id, step).is_claimed


def status(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status


def test_a_lock_is_held_as_long_as_its_process_lives(instance, tmp_path, command):
    lock = lock_of(instance, ALIVE)
    assert is_held(lock) is True
    assert f"process {command.pid}" in holder(lock)
    command.kill()
    command.wait()
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
    assert status(instance, mine) == dg.DagsterRunStatus.FAILURE
    monkeypatch.undo()  # a home that was moved here, or restored
    assert len(end_lost_runs(instance)) == 1
    assert status(instance, run) == dg.DagsterRunStatus.FAILURE


def test_a_killed_command_gives_back_the_pool_and_one_that_waited_does_not_keep_its_place(instance):
    dead, waited, mine = started(instance, HERE), started(instance, HERE), None
    assert claim(instance, dead)
    assert not claim(instance, waited)  # it is next in the queue, and dead as well
    assert len(end_lost_runs(instance)) == 2
    assert {status(instance, dead), status(instance, waited)} == {dg.DagsterRunStatus.FAILURE}
    mine = started(instance)
    assert claim(instance, mine)
    assert end_lost_runs(instance) == []


def test_a_run_that_ended_without_giving_back_its_slot_does_not_keep_it(instance):
    for end in (instance.report_run_failed, lambda run: instance.delete_run(run.run_id)):
        run = started(instance)
        assert claim(instance, run)
        end(run)
        end_lost_runs(instance)
        other = started(instance)
        assert claim(instance, other)
        instance.event_log_storage.free_concurrency_slots_for_run(other.run_id)


def test_a_living_run_is_never_ended(instance, command):
    of_a_command = started(instance, HERE, ALIVE)
    of_the_ui = started(instance)
    instance.report_engine_event(
        f"Started process for run (pid: {os.getpid()}).", of_the_ui, EngineEventData.in_process(os.getpid())
    )
    starting = instance.create_run_for_job(dg.job(name="nightly")(lambda: None), status=dg.DagsterRunStatus.STARTING)
    assert claim(instance, of_the_ui)
    assert end_lost_runs(instance) == []
    for run in (of_a_command, of_the_ui):
        assert status(instance, run) == dg.DagsterRunStatus.STARTED
    assert status(instance, starting) == dg.DagsterRunStatus.STARTING
    assert not claim(instance, started(instance))


def test_a_run_of_the_ui_whose_process_died_is_ended(instance):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        run = started(instance)
        instance.report_engine_event(
            f"Started process for run (pid: {process.pid}).", run, EngineEventData.in_process(process.pid)
        )
    assert claim(instance, run)
    assert len(end_lost_runs(instance)) == 1
    assert claim(instance, started(instance))


def test_a_living_holder_is_named_and_waited_for_until_a_deadline(instance, command):
    holding, mine = started(instance, HERE, ALIVE), started(instance)
    assert claim(instance, holding)
    assert not claim(instance, mine)
    said: list[str] = []
    with pytest.raises(FinJEPAError, match=rf"process {command.pid}.*'duckdb'.*FINJEPA_WAIT_MINUTES"):
        wait_for_pool(instance, "duckdb", mine.run_id, "ingest_prices", 0.3, said.append)
    assert len(said) == 1
    assert str(command.pid) in said[0]

    free = threading.Timer(0.5, lambda: instance.event_log_storage.free_concurrency_slots_for_run(holding.run_id))
    free.start()
    wait_for_pool(instance, "duckdb", mine.run_id, "ingest_prices", 30, said.append)
    assert claim(instance, mine)
    free.join()


def test_a_holder_that_dies_while_it_is_waited_for_is_ended(instance, command, monkeypatch):
    monkeypatch.setattr("finjepa_pipeline.runs._LOOK_S", 0.1)
    holding, mine = started(instance, HERE, ALIVE), started(instance)
    assert claim(instance, holding)
    assert not claim(instance, mine)
    threading.Timer(0.5, command.kill).start()
    wait_for_pool(instance, "duckdb", mine.run_id, "ingest_prices", 30, lambda line: None)
    assert claim(instance, mine)
    assert status(instance, holding) == dg.DagsterRunStatus.FAILURE


def test_a_signal_ends_the_wait(instance, command, monkeypatch):
    holding, mine = started(instance, HERE, ALIVE), started(instance)
    assert claim(instance, holding)
    assert not claim(instance, mine)
    asked = threading.Event()
    monkeypatch.setattr("finjepa_pipeline.runs.asked", asked)
    assert not interrupts.asked.is_set()
    threading.Timer(0.3, asked.set).start()
    with pytest.raises(KeyboardInterrupt):
        wait_for_pool(instance, "duckdb", mine.run_id, "ingest_prices", 30, lambda line: None)
