"""Runs the jobs of the code location in this process, against the same instance as the UI, and prints its progress."""

import functools
import logging
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._core.instance.ref import InstanceRef
from rich.console import Console

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import write_text
from finjepa_pipeline import interrupts
from finjepa_pipeline.alerts import BY_HAND
from finjepa_pipeline.automation import explain
from finjepa_pipeline.backtest.strategies import trust_command_line
from finjepa_pipeline.causes import explained
from finjepa_pipeline.definitions import defs
from finjepa_pipeline.report.page import duration
from finjepa_pipeline.retention import hold_reserve
from finjepa_pipeline.runs import end_lost_runs, locked, wait_for_pool
from finjepa_pipeline.settings import Settings

_NEWEST, _LONG_S = 5, 5.0  # runs that are looked at; seconds from which a step is announced with its time
_INSTANCE_FILES = (Path(__file__).parent.parent / "dagster.yaml", Path(__file__).parent / "dagster.yaml")

# The output of a step goes to the terminal. Dagster would copy it there by processes that outlive an interrupted command.
_NO_COMPUTE_LOGS = {
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
}


@dataclass
class JobReport:
    """What a job made: metadata of each asset that was materialised, by asset key."""

    run_id: str
    seconds: float = 0.0
    assets: dict[str, dict[str, Any]] = field(default_factory=dict)


def open_instance(settings: Settings) -> dg.DagsterInstance:
    """The Dagster instance of this home, made on first use from the committed `dagster.yaml`; an operator's own DAGSTER_HOME
    wins."""
    if not os.environ.get("DAGSTER_HOME"):
        config = settings.dagster / "dagster.yaml"
        if not config.is_file():
            write_text(config, next(file for file in _INSTANCE_FILES if file.is_file()).read_text(encoding="utf-8"))
        os.environ["DAGSTER_HOME"] = str(settings.dagster)
    home = Path(os.environ["DAGSTER_HOME"])
    if not home.is_absolute() or not home.is_dir():
        raise FinJEPAError(
            f"DAGSTER_HOME={home} is no absolute path of a folder: make it, or unset it to use {settings.dagster}"
        )
    try:
        # Read here: Dagster takes the path of its file for a pattern, and would go on without it, with telemetry.
        file = home / "dagster.yaml"
        config = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}
        return dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home), overrides={**config, **_NO_COMPUTE_LOGS}))
    except (yaml.YAMLError, TypeError, dg.DagsterError) as error:
        raise FinJEPAError(f"{home / 'dagster.yaml'} cannot be used: {' '.join(str(error).split())[:300]}") from error


def run_job(
    settings: Settings,
    name: str,
    ops: Mapping[str, Mapping[str, Any]],
    console: Console,
    debug: bool = False,
) -> JobReport:
    """Run a job in process, with the config of each op that differs from its defaults, and print its progress; Dagster's own
    log too with `debug`.

    Raises:
        FinJEPAError: if a step failed for a reason that a user can mend, or a blocking check failed.
    """
    trust_command_line()
    job = defs.resolve_job_def(name)
    config = {
        "ops": {op: {"config": dict(values)} for op, values in ops.items()},
        "loggers": {"console": {"config": {"log_level": "DEBUG" if debug else "CRITICAL"}}},
    }
    report = JobReport(run_id=str(uuid.uuid4()))
    started = time.monotonic()
    with (
        open_instance(settings) as instance,
        locked(Path(os.environ["DAGSTER_HOME"]) / "commands", report.run_id) as mark,
    ):
        listener = _Listener(console, report, instance, 60.0 * settings.wait_minutes)
        hold_reserve(settings)
        for line in end_lost_runs(instance):
            listener.say(line)
        instance.add_event_listener(report.run_id, listener)
        try:
            job.execute_in_process(
                run_config=config,
                instance=instance,
                run_id=report.run_id,
                tags={"finjepa/why": f"finjepa {name}", BY_HAND: "command line", **mark},
            )
        except dg.Failure as error:
            if interrupts.asked.is_set() or isinstance(
                error.__cause__, KeyboardInterrupt | dg.DagsterExecutionInterruptedError
            ):
                raise KeyboardInterrupt(*getattr(error.__cause__, "__notes__", ())) from error
            raise _cause(error) from error
        except dg.DagsterInvalidConfigError as error:
            raise FinJEPAError(f"wrong config: {explain(error)}") from error
        except dg.DagsterError as error:
            known = listener.failed_check or explained(error)
            if known is None:
                raise
            raise FinJEPAError(known) from error
        if interrupts.asked.is_set():  # Dagster notes a signal between two steps, and forgets it after the last
            raise KeyboardInterrupt
    report.seconds = time.monotonic() - started
    return report


def _cause(error: dg.Failure) -> Exception:
    """What an asset raised: `runs.final` has wrapped it for Dagster."""
    return error.__cause__ if isinstance(error.__cause__, Exception) else FinJEPAError(error.description or "it failed")


class _Listener:
    """Prints one line when a step begins and one when it ends, keeps what was materialised, and waits for pools."""

    def __init__(self, console: Console, report: JobReport, instance: dg.DagsterInstance, patience_s: float):
        self.console, self.report = console, report
        self._instance, self._patience_s = instance, patience_s
        self.failed_check: str | None = None
        self._begun: dict[str, float] = {}

    @functools.cached_property
    def _longest(self) -> dict[str, float]:
        """The most seconds that each step took in the newest runs that went through."""
        newest = self._instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS]), limit=_NEWEST)
        stats = [one for run in newest for one in self._instance.get_run_step_stats(run.run_id)]
        took = sorted((one.end_time - one.start_time, one.step_key) for one in stats if one.start_time and one.end_time)
        return {step: seconds for seconds, step in took}

    def say(self, line: str) -> None:
        self.console.print(f"    {line}", style="dim")

    def __call__(self, entry: dg.EventLogEntry) -> None:
        event = entry.dagster_event
        if event is None:
            if int(entry.level) >= logging.INFO:
                self.say(entry.user_message)
            return
        step = event.step_key or ""
        if event.is_engine_event and "pool" in event.engine_event_data.metadata:  # Dagster waits for a slot of a pool
            pool = str(event.engine_event_data.metadata["pool"].value)
            wait_for_pool(self._instance, pool, self.report.run_id, step, self._patience_s, self.say)
        elif event.is_step_start:
            self._begun[step] = time.monotonic()
            before = self._longest.get(step, 0.0)
            self.console.print(f"  {step} ..." + (f" (up to {duration(before)} before)" if before >= _LONG_S else ""))
        elif event.is_step_success:
            seconds = time.monotonic() - self._begun.get(step, time.monotonic())
            self.console.print(f"  {step} done in {seconds:.1f} s", style="green")
        elif event.event_type == dg.DagsterEventType.ASSET_MATERIALIZATION:
            made = event.step_materialization_data.materialization
            self.report.assets[made.asset_key.to_user_string()] = {k: v.value for k, v in made.metadata.items()}
        elif event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            found = check.description or "see the UI"
            name = f"{check.asset_key.to_user_string()}: {check.check_name}"
            if not check.passed:
                line = f"warning of the check {name}: {found}"
                if check.severity == dg.AssetCheckSeverity.ERROR:
                    line = self.failed_check = f"the check {name} failed: {found}"
                self.console.print(f"    {line}", style="yellow")
