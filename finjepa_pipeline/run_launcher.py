"""Dagster's own launcher of runs, which also sees when the process of a run is gone.

A code server reports the end of the runs that it has started. When it died as well (a power cut, a restart of everything, the
memory killer), nobody does: the run would stand as running until its time limit, and every later night would wait for it.
"""

import json
import os
import socket
import time
from pathlib import Path

from dagster import DagsterEventType, DagsterInstance, DagsterRun
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.tags import GRPC_INFO_TAG

from finjepa_pipeline.run_lock import LOCK, is_held, lock_of

# What a process says of itself when it takes a run: one of a code server, or one that runs every step itself.
_STARTED = ("Started process for run", "Executing steps in process")
_CAN_SEE_PROCESSES = Path("/proc/self/stat").is_file()
_CLOCK_SLACK_S = 2.0  # /proc counts in ticks since a boot whose moment is known to the second


class WatchedRunLauncher(DefaultRunLauncher):
    """Run monitoring asks it, and ends a run whose process is gone; `run_retries` then tries it again. A run of a code server on
    another machine, or in another container, is left to its time limit."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return _CAN_SEE_PROCESSES  # elsewhere Dagster's time limits are all there is

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        lost = lost_process(self._instance, run)
        if lost is not None:
            return CheckRunHealthResult(WorkerStatus.FAILED, lost)
        return CheckRunHealthResult(WorkerStatus.RUNNING)


def lost_process(instance: DagsterInstance, run: DagsterRun) -> str | None:
    """Why a run that has not ended has no process any more; None if its process lives, or that cannot be seen from here."""
    if LOCK in run.tags:
        held = is_held(lock_of(instance, run.run_id))
        if held is None:  # removed by its process, which could not report the end of the run; or of another machine
            held = run.tags[LOCK] != socket.gethostname() and not isinstance(instance.run_storage, SqliteRunStorage)
        return None if held else "the command that ran it is gone"
    if not _is_here(run) or not _CAN_SEE_PROCESSES:
        return None
    for entry in reversed(instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)):
        event = entry.dagster_event
        if event is None or not (event.message or "").startswith(_STARTED):
            continue
        pid = int(event.engine_event_data.metadata["pid"].value)  # type: ignore[arg-type]
        began = _began(pid)
        if began is None or began > entry.timestamp + _CLOCK_SLACK_S:  # or its number is another's by now
            return f"its process {pid} is gone"
        return None
    return None


def _is_here(run: DagsterRun) -> bool:
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
