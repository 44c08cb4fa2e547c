"""The server of the look-alike."""

import os
import re
import threading
from collections.abc import Callable, Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.hub_lookalike.repos import WRITER, Kind, Repo
from tests.hub_lookalike.routes import Routes
from tests.hub_lookalike.wire import Fault, PlannedFault


class HubLookalike:
    """The server; a context manager. `requests` lists every request as "METHOD /path", in the order of
    arrival, `times` says when each came, and `ranges` what parts of files were asked for."""

    def __init__(self) -> None:
        self.repos: dict[tuple[Kind, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.times: list[float] = []
        self.ranges: list[str] = []
        self.lock = threading.RLock()
        self.before_commit: Callable[[Repo], None] | None = None  # called once, when the next commit arrives
        self._faults: list[PlannedFault] = []
        handler = type("Handler", (Routes,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True

    def __enter__(self) -> "HubLookalike":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def client_env(self, hf_home: Path, token: str | None = WRITER) -> dict[str, str]:
        """The environment of a process whose Hub clients talk to this server and cache under `hf_home`."""
        dropped = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE")
        env = {name: value for name, value in os.environ.items() if name not in dropped}
        env |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(hf_home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        env |= {f"HF_HUB_DISABLE_{what}": "1" for what in ("XET", "TELEMETRY", "UPDATE_CHECK", "PROGRESS_BARS")}
        return env if token is None else env | {"HF_TOKEN": token}

    def add_repo(
        self, repo_id: str, *, kind: Kind = "model", files: Mapping[str, bytes] | None = None, **access
    ) -> Repo:
        repo = Repo(repo_id, kind, **access)
        repo.commit("initial commit", {".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})})
        self.repos[kind, repo_id] = repo
        return repo

    def repo(self, repo_id: str, kind: Kind = "model") -> Repo:
        return self.repos[kind, repo_id]

    def fail(self, pattern: str, fault: Fault, *, times: int = 1, status: int = 503, **more: Any) -> None:
        """Plan a fault for the next `times` requests whose "METHOD /path" matches `pattern`.

        `status` answers with that status and does nothing; `cut` closes the connection in the middle of the request,
        `reset` does so with a RST; `cut_answer` and `reset_answer` do so after two thirds of the answer; `lose_answer` does
        what is asked and closes without an answer; `delay` waits `seconds` first. `headers` go with the answer of `status`.
        """
        self._faults.append(PlannedFault(re.compile(pattern), fault, times, status, **more))

    def take_fault(self, request: str) -> PlannedFault | None:
        with self.lock:
            for planned in self._faults:
                if planned.times > 0 and planned.pattern.search(request):
                    planned.times -= 1
                    return planned
        return None
