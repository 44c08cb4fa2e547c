"""Runs of a home: which of them still have a process, who holds the pools of the Dagster instance, what is tried again, and
what a run works on.

The process of a run that a command started holds a lock for as long as it lives: the kernel frees it however the process ends,
and a process id may be another's by now. A code server reports the end of the runs that it has started. When it died as well (a
power cut, the memory killer), nobody does: the run would stand as running until its time limit, and every later one would wait
for it. So runs without a process are ended, their slots of pools are freed, and a living holder is waited for.
"""

import contextlib
import fcntl
import functools
import inspect
import json
import multiprocessing
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.tags import GRPC_INFO_TAG

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.causes import explained
from finjepa_pipeline.compute import ProcessDiedError
from finjepa_pipeline.interrupts import asked

P = ParamSpec("P")
R = TypeVar("R")
CRASH_RETRIES = dg.RetryPolicy(max_retries=2, delay=15, backoff=dg.Backoff.EXPONENTIAL)
LOCK = "finjepa/lock"  # tag of a run that holds a lock: the name of its machine
# What a process says of itself when it takes a run: one of a code server, or one that runs every step itself.
_STARTED = ("Started process for run", "Executing steps in process")
_CAN_SEE_PROCESSES = Path("/proc/self/stat").is_file()
_CLOCK_SLACK_S = 2.0  # /proc counts in ticks since a boot whose moment is known to the second
_POLL_S = 0.5
_LOOK_S = 5.0  # between two looks for holders that have died


def lock_of(instance: dg.DagsterInstance, run_id: str) -> Path:
    """Beside the database of runs, so that the lock of a run is found where that was moved, copied or restored."""
    return Path(instance.root_directory) / "commands" / f"{run_id}.lock"


@contextlib.contextmanager
def locked(folder: Path, run_id: str) -> Iterator[dict[str, str]]:
    """Hold the lock of a run; yields tags for it, none on a file system without locks."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run_id}.lock"
    with path.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            path.unlink(missing_ok=True)
            yield {}
            return
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
        with contextlib.suppress(OSError):  # a full disk: the lock counts, and not what it says
            file.write(f"`{command}` (process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')})")
            file.flush()
        try:
            yield {LOCK: socket.gethostname()}
        finally:
            path.unlink(missing_ok=True)


def is_held(path: Path) -> bool | None:
    """Whether a living process holds a lock; None where there is none."""
    try:
        with path.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return None
    except OSError:  # of another user, or on a file system without locks: nothing is known, and nothing is ended
        return True


def holder(path: Path) -> str:
    """The command that took a lock, its process and since when, as it wrote them; empty if they cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


class WatchedRunLauncher(DefaultRunLauncher):
    """Run monitoring asks it, and ends a run whose process is gone; `run_retries` then tries it again. A run of a code server on
    another machine, or in another container, is left to its time limit."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return _CAN_SEE_PROCESSES  # elsewhere Dagster's time limits are all there is

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        lost = lost_process(self._instance, run)
        if lost is not None:
            return CheckRunHealthResult(WorkerStatus.FAILED, lost)
        return CheckRunHealthResult(WorkerStatus.RUNNING)


def lost_process(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Why a run that has not ended has no process any more; None if its process lives, or that cannot be seen from here."""
    if LOCK in run.tags:
        held = is_held(lock_of(instance, run.run_id))
        if held is None:  # removed by its process, which could not report the end of the run; or of another machine
            held = run.tags[LOCK] != socket.gethostname() and not isinstance(instance.run_storage, SqliteRunStorage)
        return None if held else "the command that ran it is gone"
    if not _is_here(run) or not _CAN_SEE_PROCESSES:
        return None
    for entry in reversed(instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)):
        event = entry.dagster_event
        if event is None or not (event.message or "").startswith(_STARTED):
            continue
        pid = int(event.engine_event_data.metadata["pid"].value)  # type: ignore[arg-type]
        began = _began(pid)
        if began is None or began > entry.timestamp + _CLOCK_SLACK_S:  # or its number is another's by now
            return f"its process {pid} is gone"
        return None
    return None


def _is_here(run: dg.DagsterRun) -> bool:
    server = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))  # none of a run whose steps run in the process of a command
    return server.get("host", "localhost") in ("localhost", "127.0.0.1", "::1")


def _began(pid: int) -> float | None:
    """When a process was started, in seconds since the epoch; None where it is not alive."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s


def end_lost_runs(instance: dg.DagsterInstance) -> list[str]:
    """End every run whose process is gone, with a line for each, and free all slots of pools that no living run holds."""
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS_RUN_STATUSES)):
        lost = lost_process(instance, run)
        if lost is not None:
            instance.report_run_failed(run, f"{lost}; its last step is not finished")
            lock_of(instance, run.run_id).unlink(missing_ok=True)
            ended.append(f"the run {run.run_id[:8]} of {run.job_name} has no process any more ({lost}) and was ended")
    storage = instance.event_log_storage
    infos = storage.get_concurrency_infos(list(storage.get_concurrency_keys())).values()
    claims = {claim.run_id for info in infos for claim in (*info.claimed_slots, *info.pending_steps)}
    for run_id in claims:
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            storage.free_concurrency_slots_for_run(run_id)
    return ended


def wait_for_pool(
    instance: dg.DagsterInstance,
    pool: str,
    run_id: str,
    step: str,
    patience_s: float,
    say: Callable[[str], None],
) -> None:
    """Wait until a step that Dagster has blocked may take its slot; raises where a living run holds the pool for longer than
    `patience_s`, and on a signal. Dagster's own wait has no end, and keeps a core busy."""
    storage = instance.event_log_storage
    deadline, looked, named = time.monotonic() + patience_s, 0.0, ""
    while True:
        if time.monotonic() - looked > _LOOK_S:
            for line in end_lost_runs(instance):
                say(line)
            looked = time.monotonic()
        info = storage.get_concurrency_info(pool)
        if any(s.run_id == run_id and s.step_key == step and s.assigned_timestamp for s in info.pending_steps):
            return
        others = {s.run_id for s in (*info.claimed_slots, *info.pending_steps) if s.run_id != run_id}
        if not others:  # a holder died between freeing its slot and giving it away: queue again
            storage.free_concurrency_slot_for_step(run_id, step)
            return
        held = _named(instance, sorted(others)[0])
        if held != named:
            say(f"{step} waits for {held}, up to {patience_s / 60:.0f} minutes")
            named = held
        if time.monotonic() > deadline:
            raise FinJEPAError(
                f"{step} has waited {patience_s / 60:.3g} minutes for {held}, which holds the pool {pool!r} of this home; "
                "end that process or let it finish, then run the same command again (FINJEPA_WAIT_MINUTES sets how long)"
            )
        if asked.wait(_POLL_S):
            raise KeyboardInterrupt


def _named(instance: dg.DagsterInstance, run_id: str) -> str:
    return holder(lock_of(instance, run_id)) or f"the run {run_id[:8]}, started in the UI or by a schedule"


# Steps


def final(function: Callable[P, R]) -> Callable[P, R]:
    """An asset function whose exceptions end its step: the retry policy of the job is left with crashes, since an exception would
    only be raised again. The step ends with its run, and numbers of its metadata are rounded. Goes directly over the function,
    below `@dg.multi_asset`; `asset` brings it along."""

    @contextlib.contextmanager
    def guarded() -> Iterator[None]:
        _end_with_run()
        try:
            yield
        except (Exception, KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as error:
            raise _failure(error) from error

    @functools.wraps(function)
    def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with guarded():
            yield from map(_as_shown, function(*args, **kwargs))  # type: ignore[arg-type]

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        with guarded():
            return _as_shown(function(*args, **kwargs))

    return generator if inspect.isgeneratorfunction(function) else plain  # type: ignore[return-value]


def asset(
    group: str,
    *kinds: str,
    table: str | None = None,
    checks: Mapping[str, str] | None = None,
    blocking: bool = False,
    **options: Any,
) -> Callable[[Callable], dg.AssetsDefinition]:
    """A decorator: `dg.asset` over `final`, with what every asset has; `table` of the warehouse is what it fills, and
    `checks` what it yields a result of, with what each is about. Where the function takes no config no key is accepted; Dagster
    would accept any, and drop it."""

    def decorate(function: Callable) -> dg.AssetsDefinition:
        nothing = {} if "config" in inspect.signature(function).parameters else {"config_schema": {}}
        shown = {"dagster/table_name": f"main.{table}"} if table else None
        specs = [
            dg.AssetCheckSpec(name, asset=function.__name__, description=text, blocking=blocking)
            for name, text in (checks or {}).items()
        ]
        common = {"group_name": group, "owners": ["team:finjepa"], "kinds": set(kinds), "metadata": shown}
        return dg.asset(**common, **nothing, **options, check_specs=specs or None)(final(function))

    return decorate


def _rounded(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Four significant digits of each number, as a person reads them; tables and files have all digits."""

    def shown(value: Any) -> Any:
        number = getattr(value, "value", value)
        if not isinstance(number, float):
            return value
        return float(f"{number:.4g}" if abs(number) < 1000 else f"{number:.0f}")

    return {name: shown(value) for name, value in metadata.items()}


def _as_shown(result: Any) -> Any:
    if isinstance(result, dg.AssetCheckResult):
        return result.with_metadata(_rounded(result.metadata))
    made = isinstance(result, dg.MaterializeResult)
    return result._replace(metadata=_rounded(result.metadata or {})) if made else result


@functools.cache
def _end_with_run() -> None:
    """Let this process end when the one that runs the steps, or the one that it was forked from, was killed: what is started in
    its place would find the warehouse and the GPU taken. A command line runs its steps itself."""
    run, server = multiprocessing.parent_process(), os.getppid()
    if run is None:
        return

    def watch() -> None:
        while run.is_alive() and os.getppid() == server:
            run.join(_POLL_S)
        # what is half done is undone as after a SIGKILL; a training saves its state when its launcher is gone
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="run-watch").start()


def _failure(error: BaseException) -> BaseException:
    if asked.is_set() or isinstance(error, KeyboardInterrupt | dg.DagsterExecutionInterruptedError):
        return dg.Failure(description="interrupted", allow_retries=False)
    if isinstance(error, ProcessDiedError):  # a process that the step had started died, and the step with it
        return dg.RetryRequested(max_retries=CRASH_RETRIES.max_retries, seconds_to_wait=CRASH_RETRIES.delay)
    if isinstance(error, dg.Failure | dg.RetryRequested | dg.DagsterError):
        return error
    text = str(error) if isinstance(error, FinJEPAError) else f"{type(error).__name__}: {error}"
    return dg.Failure(description=explained(error) or text, allow_retries=False)


# What a run works on. A step takes what earlier steps of its run made, and not what the home shows by then: another command may
# have changed that in the meantime.


def made_in_run(context: dg.AssetExecutionContext, key: str) -> dict[str, Any]:
    """Metadata of the newest materialisation of an asset in this run, or in the run that this one tries again; empty where
    neither made it."""
    run: dg.DagsterRun | None = context.run
    while run is not None:
        found = context.instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        for record in reversed(found.records):
            made = record.event_log_entry.asset_materialization
            if made is not None and made.asset_key == dg.AssetKey(key):
                return _metadata(record.event_log_entry)
        run = context.instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
    return {}


def made_last(context: dg.AssetExecutionContext, key: str) -> dict[str, Any]:
    """Metadata of the last materialisation of an asset in any run; empty where there is none."""
    return _metadata(context.instance.get_latest_materialization_event(dg.AssetKey(key)))


def prices_of_run(context: dg.AssetExecutionContext) -> tuple[str, str] | None:
    """Feed and data version that this run has ingested; None where it takes the home's prices as they are."""
    made = made_in_run(context, "prices")
    return (made["feed"], made["data_version"]) if made else None


def _metadata(entry: dg.EventLogEntry | None) -> dict[str, Any]:
    made = entry.asset_materialization if entry is not None else None
    return {name: value.value for name, value in made.metadata.items()} if made is not None else {}
