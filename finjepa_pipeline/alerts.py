"""Tells a person that something needs a look: one JSON object, posted to a webhook, given to a command, or both."""

import shlex
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass, field
from typing import Literal

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import to_json
from finjepa_pipeline.settings import Settings

TRIES = 3
_POST_TIMEOUT_S = 10.0
_COMMAND_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Alert:
    """`text` says it in one line, as chat webhooks show it; the other fields are for programs."""

    text: str
    kind: Literal["failure", "blocking check", "stale champion"]
    job: str | None = None
    run_id: str | None = None
    failed: tuple[str, ...] = field(default=())  # steps or checks


def send(settings: Settings, alert: Alert) -> bool:
    """Send an alert wherever the settings say.

    Returns:
        Whether there was anywhere to send it.

    Raises:
        FinJEPAError: if it could not be delivered, after some tries. The webhook's address may hold a secret, and is not told.
    """
    body = to_json(asdict(alert))
    if settings.alert_webhook:
        _post(settings.alert_webhook, body)
    if settings.alert_command:
        _run(settings.alert_command, body)
    return bool(settings.alert_webhook or settings.alert_command)


def _post(url: str, body: str) -> None:
    for attempt in range(TRIES):
        try:
            request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=_POST_TIMEOUT_S):
                return
        except (OSError, ValueError) as error:
            final = isinstance(error, ValueError) or (isinstance(error, urllib.error.HTTPError) and error.code < 500)
            if final or attempt == TRIES - 1:
                code = f" {error.code}" if isinstance(error, urllib.error.HTTPError) else ""
                raise FinJEPAError(
                    f"the alert webhook of FINJEPA_ALERT_WEBHOOK did not take an alert ({type(error).__name__}{code})"
                ) from None
            time.sleep(2.0**attempt)


def _run(command: str, body: str) -> None:
    try:
        subprocess.run(
            shlex.split(command), input=body, text=True, capture_output=True, timeout=_COMMAND_TIMEOUT_S, check=True
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise FinJEPAError(
            f"the command of FINJEPA_ALERT_COMMAND did not take an alert ({type(error).__name__})"
        ) from None
