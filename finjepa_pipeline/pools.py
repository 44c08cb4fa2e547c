"""Pools of the Dagster instance: runs without a process are ended and their slots freed, a living holder is waited for."""

import time
from collections.abc import Callable

import dagster as dg
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.interrupts import asked
from finjepa_pipeline.run_launcher import lost_process
from finjepa_pipeline.run_lock import holder, lock_of

_POLL_S = 0.5
_LOOK_S = 5.0  # between two looks for holders that have died


def end_lost_runs(instance: dg.DagsterInstance) -> list[str]:
    """End every run whose process is gone, and free all slots of pools that no living run holds.

    Returns:
        A line for each run that was ended.
    """
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
    """Wait until a step that Dagster has blocked may take its slot. Dagster's own wait has no end, and keeps a core busy.

    Raises:
        FinJEPAError: if a living run holds the pool for longer than `patience_s`.
        KeyboardInterrupt: on SIGINT or SIGTERM.
    """
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
    run = instance.get_run_by_id(run_id)
    if run is None:
        return f"the run {run_id[:8]}"
    return (
        holder(lock_of(instance, run_id))
        or f"the run {run_id[:8]} of {run.job_name}, started in the UI or by a schedule"
    )
