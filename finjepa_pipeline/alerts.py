"""Alerts: of runs that have failed for good, and of red checks.

An alert is one JSON object, posted to a webhook, given to a command, or both.
"""

import shlex
import subprocess
import time
import urllib.request
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import dagster as dg

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json
from finjepa_model.hub import without_token
from finjepa_pipeline.settings import Settings, SettingsResource

BY_HAND = "finjepa/by"  # tag of a run that a person started in a terminal, where failures are printed already
TRIES = 3
_POST_TIMEOUT_S = 10.0
_COMMAND_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Alert:
    """`text` says it in one line, as chat webhooks show it; the other fields are for programs. `failed` are steps or checks;
    `links`, within the UI, are sent as whole addresses where FINJEPA_UI_URL is set, in `text` as well."""

    text: str
    kind: Literal["failure", "blocking check"]
    job: str | None = None
    run_id: str | None = None
    failed: tuple[str, ...] = ()
    links: tuple[str, ...] = ()


def send(settings: Settings, alert: Alert) -> bool:
    """Send an alert wherever the settings say; returns whether there was anywhere to send it. Raises where it could not be
    delivered after some tries, without the webhook's address, which may hold a secret."""
    links = tuple(f"{settings.ui_url}{link}" for link in alert.links if settings.ui_url)
    body = to_json(asdict(replace(alert, text=" ".join((alert.text, *links)), links=links)))
    if settings.alert_webhook:
        _post(settings.alert_webhook, body)
    if settings.alert_command:
        _run(settings.alert_command, body)
    return bool(settings.alert_webhook or settings.alert_command)


@dg.run_failure_sensor(
    name="failure_alert",
    description="Sends an alert when a run has failed for good, with the blocking checks that were red. Crashes that are tried "
    "again are not reported, nor is what a person runs in a terminal.",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
)
def failure_alert(context: dg.RunFailureSensorContext, settings: SettingsResource) -> None:
    alert = alert_of(context.instance, context.dagster_run)
    if alert is not None and send(settings.get(), alert):
        context.log.info(f"sent: {alert.text}")


def alert_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Alert | None:
    """What there is to say about a failed run; None where a person knows already, or Dagster tries it again."""
    now = instance.get_run_by_id(run.run_id) or run  # whether it is tried again is a tag that comes after the event
    if BY_HAND in now.tags or now.tags.get("dagster/will_retry") == "true":
        return None
    why, red = f"FinJEPA {run.job_name} failed", red_checks(instance, run)
    if red:
        return _about_checks(why, red, run)
    steps, reason = [], "its process ended"
    for record in instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records:
        event = record.event_log_entry.dagster_event
        if event is not None and event.step_key and event.step_failure_data.error:
            steps.append(event.step_key)
            reason = first_cause(event.step_failure_data)
    where = f" in {', '.join(steps)}" if steps else ""
    links = (f"/runs/{run.run_id}",)
    return Alert(f"{why}{where}: {reason}", "failure", run.job_name, run.run_id, tuple(steps), links)


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    name="red_check_alert",
    description="Sends an alert when a run went through and one of its checks is red all the same, such as a leak test of a "
    "challenger: the champion stays.",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
)
def red_check_alert(context: dg.RunStatusSensorContext, settings: SettingsResource) -> None:
    run = context.dagster_run
    red = {} if BY_HAND in run.tags else red_checks(context.instance, run)
    if red and send(settings.get(), _about_checks(f"FinJEPA {run.job_name} went through", red, run)):
        context.log.info(f"sent: {', '.join(red)} of {run.run_id}")


def red_checks(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dict[str, dg.AssetCheckEvaluation]:
    """Each check of a run that did not pass and is more than a warning, by the name of its asset and its own."""
    records = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION).records
    red = {}
    for record in records:
        event = record.event_log_entry.dagster_event
        found = event.asset_check_evaluation_data if event is not None else None
        if found is not None and not found.passed and found.severity == dg.AssetCheckSeverity.ERROR:
            red[f"{found.asset_key.to_user_string()}: {found.check_name}"] = found
    return red


def _about_checks(why: str, red: dict[str, dg.AssetCheckEvaluation], run: dg.DagsterRun) -> Alert:
    """With the pages that the checks name in their metadata."""
    reason = [*red.values()][-1].description or "no reason was given"
    pages = dict.fromkeys(
        str(value.value)
        for found in red.values()
        for value in found.metadata.values()
        if isinstance(value, dg.UrlMetadataValue)
    )
    text = f"{why}: the check {', '.join(red)} is red ({reason})"
    return Alert(text, "blocking check", run.job_name, run.run_id, tuple(red), (f"/runs/{run.run_id}", *pages))


def first_cause(data: Any) -> str:
    """The innermost message of a step's failure, in one line without anything that looks like a token."""
    error, user = data.error, data.user_failure_data
    while error is not None and error.cause is not None:
        error = error.cause
    text = (user and user.description) or (error.message if error is not None else "no reason was given")
    return without_token(" ".join(text.split()))[:500]


def _post(url: str, body: str) -> None:
    for attempt in range(TRIES):
        try:
            request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=_POST_TIMEOUT_S):
                return
        except (OSError, ValueError) as error:
            code = getattr(error, "code", None)  # of an answer
            if attempt == TRIES - 1 or isinstance(error, ValueError) or (code is not None and code < 500):
                what = type(error).__name__ if code is None else f"{type(error).__name__} {code}"
                raise FinJEPAError(f"the webhook of FINJEPA_ALERT_WEBHOOK did not take an alert ({what})") from None
            time.sleep(2.0**attempt)


def _run(command: str, body: str) -> None:
    try:
        subprocess.run(
            shlex.split(command), input=body, text=True, capture_output=True, timeout=_COMMAND_TIMEOUT_S, check=True
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        what = type(error).__name__
        raise FinJEPAError(f"the command of FINJEPA_ALERT_COMMAND did not take an alert ({what})") from None


SENSORS = [failure_alert, red_check_alert]
