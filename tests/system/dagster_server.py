"""Dagster's webserver on a home, as an operator has it: started, asked over GraphQL, killed, and seen to leave nothing behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from dagster_graphql import DagsterGraphQLClient

from tests.system import processes
from tests.system.product import COMMANDS, ROOT, wait_until

SELECTOR = {"repositoryLocationName": "finjepa", "repositoryName": "__repository__"}
ENDED = ("SUCCESS", "FAILURE", "CANCELED")
_RUNS = """query($job: String!) { runsOrError(filter: {pipelineName: $job}) { ... on Runs { results {
  runId status tags { key value } } } } }"""
_TICK = """
mutation($selector: ScheduleSelector!, $when: Float!) { scheduleDryRun(selectorData: $selector, timestamp: $when) {
  __typename
  ... on PythonError { message }
  ... on DryRunInstigationTick { evaluationResult { skipReason error { message }
    runRequests { runConfigYaml tags { key value } } } }
} }"""
_START_SENSOR = """
mutation($selector: SensorSelector!) { startSensor(sensorSelector: $selector) { __typename ... on PythonError { message } } }"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class DagsterClient:
    """Asks a webserver over GraphQL; `log` says why it does not answer."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> DagsterGraphQLClient:
        return DagsterGraphQLClient("127.0.0.1", port_number=self.port)

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["data"]

    def answers(self) -> bool:
        """Whether the webserver reaches the code server."""
        with contextlib.suppress(OSError):
            return bool(self.ask("{ assetNodes { id } }")["assetNodes"])
        return False

    def tick(self, when: float) -> dict[str, Any]:
        """What the nightly schedule answers at a moment: `skipReason` or `runRequests`."""
        selector = SELECTOR | {"scheduleName": "nightly_schedule"}
        answer = self.ask(_TICK, selector=selector, when=when)["scheduleDryRun"]
        assert answer["__typename"] == "DryRunInstigationTick", answer
        result = answer["evaluationResult"]
        assert result["error"] is None, result
        return result

    def launch(self, request: dict[str, Any]) -> str:
        """Launch the run of `nightly` that a tick asked for."""
        config, tags = yaml.safe_load(request["runConfigYaml"]), {tag["key"]: tag["value"] for tag in request["tags"]}
        return self.client.submit_job_execution("nightly", run_config=config, tags=tags)

    def launch_job(self, job: str, config: dict[str, Any]) -> str:
        """Launch a job as the launchpad of the UI does, with the config of each op."""
        ops = {op: {"config": values} for op, values in config.items()}
        return self.client.submit_job_execution(job, run_config={"ops": ops})

    def terminate(self, run_id: str) -> None:
        """As the button of the UI does."""
        self.client.terminate_run(run_id)

    def start_sensor(self, name: str) -> None:
        answer = self.ask(_START_SENSOR, selector=SELECTOR | {"sensorName": name})["startSensor"]
        assert answer["__typename"] != "PythonError", answer

    def status(self, run_id: str) -> str:
        return self.client.get_run_status(run_id).value

    def runs(self, job: str = "nightly") -> list[dict[str, Any]]:
        """Newest first."""
        return self.ask(_RUNS, job=job)["runsOrError"]["results"]

    def wait(self, run_id: str, seconds: float = 900) -> str:
        """The state in which a run ends."""
        wait_until(lambda: self.status(run_id) in ENDED, seconds, lambda: self.log.read_text()[-3000:], every=1)
        return self.status(run_id)

    def wait_for_all(self, seconds: float = 900) -> None:
        """Until no run is queued or running, retries included: for nine seconds in a row."""
        quiet = [0]

        def ended() -> bool:
            quiet[0] = quiet[0] + 1 if all(run["status"] in ENDED for run in self.runs()) else 0
            return quiet[0] >= 3

        wait_until(ended, seconds, lambda: str(self.runs()), every=3)


class DagsterServer(DagsterClient):
    """`make ui`, which is `dagster dev` behind a guard: a context manager; `start` again after a kill."""

    def __init__(self, home: Path, environment: dict[str, str], log: Path | None = None):
        self.home, self.log, self.port = home, log or home.parent / f"{home.name}.log", free_port()
        self.environment = environment | {
            "FINJEPA_HOME": str(home),
            "DAGSTER_HOME": str(home / "dagster"),
            "PATH": f"{COMMANDS}:{os.environ['PATH']}",
        }
        self.left_behind: list[str] = []
        (home / "dagster").mkdir(parents=True, exist_ok=True)
        if not (home / "dagster" / "dagster.yaml").exists():
            (home / "dagster" / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())

    def __enter__(self) -> "DagsterServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        command = [sys.executable, "-m", "finjepa_pipeline.ui", "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--workspace", ROOT / "workspace.yaml"],
            env=self.environment, cwd=self.home.parent, stdout=self.log.open("a"), stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        if not self.is_up(patience=300):
            self.kill()
            raise AssertionError(f"dagster dev did not come up: {self.log.read_text()[-3000:]}")

    def is_up(self, patience: float) -> bool:
        """Whether `dagster dev` has not ended, and the webserver reaches the code server within so many seconds."""
        deadline = time.monotonic() + patience
        while self.process.poll() is None and time.monotonic() < deadline:
            if self.answers():
                return True
            time.sleep(0.5)
        return False

    def stop(self) -> None:
        """As an operator stops it. What does not end by itself within half a minute is killed, and named in `left_behind`."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=60)
        self._wait_until_gone(30)
        self.left_behind = [processes.command_of(pid)[:160] for pid in self.processes()]
        self.kill()

    def kill(self) -> None:
        """As a service manager does with all that belongs to a service."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._wait_until_gone(10)

    def _wait_until_gone(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.2)

    def processes(self) -> list[int]:
        """Every living process whose home this is, `dagster dev` itself included."""
        return processes.of_home(self.home)
