"""`dagster dev` on a home, as an operator has it: started, asked over GraphQL, killed, and seen to leave nothing behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.system.product import COMMANDS, ROOT

SELECTOR = {"repositoryLocationName": "finjepa", "repositoryName": "__repository__"}
_LAUNCH = """
mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
  __typename
  ... on LaunchRunSuccess { run { runId } }
  ... on PythonError { message }
  ... on RunConfigValidationInvalid { errors { message } }
} }"""
_RUN = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status stepStats { stepKey status } } } }"
_RUNS = """query($job: String!) { runsOrError(filter: {pipelineName: $job}) { ... on Runs { results {
  runId status tags { key value } } } } }"""
_TICK = """
mutation($selector: ScheduleSelector!, $when: Float!) { scheduleDryRun(selectorData: $selector, timestamp: $when) {
  __typename
  ... on PythonError { message }
  ... on DryRunInstigationTick { evaluationResult { skipReason error { message }
    runRequests { runConfigYaml tags { key value } } } }
} }"""
_TERMINATE = """
mutation($id: String!) { terminateRun(runId: $id) { __typename ... on TerminateRunFailure { message }
  ... on PythonError { message } } }"""
_START_SENSOR = """
mutation($selector: SensorSelector!) { startSensor(sensorSelector: $selector) { __typename ... on PythonError { message } } }"""
ENDED = ("SUCCESS", "FAILURE", "CANCELED")


class DagsterClient:
    """Asks a webserver over GraphQL; `log` says why it does not answer."""

    port: int
    log: Path

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        url = f"http://127.0.0.1:{self.port}/graphql"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["data"]

    def tick(self, when: float) -> dict[str, Any]:
        """What the nightly schedule answers at a moment: `skipReason` or `runRequests`."""
        selector = SELECTOR | {"scheduleName": "nightly_schedule"}
        answer = self.ask(_TICK, selector=selector, when=when)["scheduleDryRun"]
        assert answer["__typename"] == "DryRunInstigationTick", answer
        result = answer["evaluationResult"]
        assert result["error"] is None, result
        return result

    def launch(self, request: dict[str, Any]) -> str:
        """Launch the run that a tick asked for."""
        tags = [{"key": tag["key"], "value": tag["value"]} for tag in request["tags"]]
        params = {
            "selector": SELECTOR | {"jobName": "nightly"},
            "runConfigData": request["runConfigYaml"],
            "executionMetadata": {"tags": tags},
            "mode": "default",
        }
        return self._launched(params)

    def launch_job(self, job: str, ops: dict[str, dict[str, Any]]) -> str:
        """Launch a job as the launchpad of the UI does."""
        config = {"ops": {op: {"config": values} for op, values in ops.items()}}
        return self._launched({"selector": SELECTOR | {"jobName": job}, "runConfigData": config, "mode": "default"})

    def _launched(self, params: dict[str, Any]) -> str:
        launched = self.ask(_LAUNCH, params=params)["launchPipelineExecution"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return launched["run"]["runId"]

    def terminate(self, run_id: str) -> None:
        """As the button of the UI does."""
        answer = self.ask(_TERMINATE, id=run_id)["terminateRun"]
        assert answer["__typename"] == "TerminateRunSuccess", answer

    def start_sensor(self, name: str) -> None:
        answer = self.ask(_START_SENSOR, selector=SELECTOR | {"sensorName": name})["startSensor"]
        assert answer["__typename"] != "PythonError", answer

    def status(self, run_id: str) -> str:
        return self.ask(_RUN, id=run_id)["runOrError"]["status"]

    def runs(self, job: str = "nightly") -> list[dict[str, Any]]:
        """Newest first."""
        return self.ask(_RUNS, job=job)["runsOrError"]["results"]

    def wait(self, run_id: str, timeout: float = 900) -> str:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            status = self.status(run_id)
            if status in ENDED:
                return status
            time.sleep(2)
        raise AssertionError(f"run {run_id} did not end: {self.log.read_text()[-3000:]}")

    def wait_for_all(self, timeout: float = 900) -> None:
        """Until no run is queued or running, retries included."""
        deadline = time.monotonic() + timeout
        quiet = 0
        while time.monotonic() < deadline and quiet < 3:
            quiet = quiet + 1 if all(run["status"] in ENDED for run in self.runs()) else 0
            time.sleep(3)
        assert quiet >= 3, [(run["runId"], run["status"]) for run in self.runs()]


class DagsterServer(DagsterClient):
    """A context manager; `start` again after a kill. Every process of it carries FINJEPA_HOME in its environment."""

    def __init__(self, home: Path, environment: dict[str, str]):
        self.home = home
        self.environment = environment | {
            "FINJEPA_HOME": str(home),
            "DAGSTER_HOME": str(home / "dagster"),
            "PATH": f"{COMMANDS}:{os.environ['PATH']}",
        }
        self.log = home.parent / f"{home.name}.log"
        self.left_behind: list[str] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (home / "dagster").mkdir(parents=True, exist_ok=True)
        (home / "dagster" / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())

    def __enter__(self) -> "DagsterServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        command = [COMMANDS / "dagster", "dev", "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--workspace", ROOT / "workspace.yaml"],
            env=self.environment,
            cwd=self.home.parent,
            stdout=self.log.open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        if not self.is_up(patience=300):
            self.kill()
            raise AssertionError(f"dagster dev did not come up: {self.log.read_text()[-3000:]}")

    def is_up(self, patience: float) -> bool:
        """Whether `dagster dev` has not ended, and the webserver reaches the code server within so many seconds."""
        deadline = time.monotonic() + patience
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self.ask("{ assetNodes { id } }")["assetNodes"]:
                    return True
            time.sleep(0.5)
        return False

    def stop(self) -> None:
        """As an operator stops it. What does not end by itself within half a minute is ended the hard way, and named in
        `left_behind`."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=60)
        self._wait_until_gone(30)
        self.left_behind = [command_of(pid) for pid in self.processes()]
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
        mark = f"FINJEPA_HOME={self.home}".encode()
        return [pid for pid in _pids() if mark in _environment(pid)]


def connected_to(port: int) -> list[int]:
    """The processes that hold an established TCP connection to a port of this machine."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    wanted = f"0100007F:{port:04X}"
    inodes = {f"socket:[{parts[9]}]" for parts in map(str.split, lines) if parts[2] == wanted and parts[3] == "01"}
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            links = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
            if links & inodes:
                found.append(pid)
    return found


def command_of(pid: int) -> str:
    """How a process was started; empty when it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:160]
    return ""


_MARKS = {
    "dagster_webserver": "webserver",
    "dagster._daemon": "daemon",
    "finjepa_pipeline.training.torchrun": "training launcher",
    "training.launch": "training rank",
    "code-server start": "keeper of the code server",
    "api grpc": "code server",
    "dagster dev": "dagster dev",
}
KINDS = {*_MARKS.values(), "run", "step"}


def kind_of(pid: int) -> str:
    """What a process of the product is: one of `KINDS`, or a helper of Dagster or Python, named by its command. Dagster starts
    the process of a run, and that of a step, by multiprocessing: a run is a child of a code server, a step one of a run."""
    command = command_of(pid)
    for mark, kind in _MARKS.items():
        if mark in command:
            return kind
    if "spawn_main" not in command:
        return command
    return "step" if "spawn_main" in command_of(_parent(pid)) else "run"


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _environment(pid: int) -> list[bytes]:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return [] if state == "Z" else Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
