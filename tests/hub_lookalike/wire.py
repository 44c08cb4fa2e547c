"""The wire: requests with planned faults, answers, and who asks."""

import json
import re
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from tests.hub_lookalike.repos import READER, WRITER, Commit, Repo

if TYPE_CHECKING:
    from tests.hub_lookalike.server import HubLookalike

Fault = Literal["status", "cut", "reset", "lose_answer", "cut_answer", "reset_answer", "delay"]


@dataclass
class PlannedFault:
    pattern: re.Pattern[str]
    fault: Fault
    times: int
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class AnswerError(Exception):
    def __init__(self, status: int, code: str = "", message: str = ""):
        self.answer = status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message}


class Wire(BaseHTTPRequestHandler):
    hub: "HubLookalike"
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self) -> None:
        self.url = urlsplit(self.path)
        request = f"{self.command} {unquote(self.url.path)}"
        self.hub.requests.append(request)
        self.hub.times.append(time.monotonic())
        planned = self.hub.take_fault(request)
        fault = planned.fault if planned else None
        length = int(self.headers.get("Content-Length") or 0)
        if fault in ("cut", "reset"):
            self.rfile.read(length // 2)
            return self._hang_up(reset=fault == "reset")
        self.body = self.rfile.read(length)
        if planned and fault == "delay":
            time.sleep(planned.seconds)
        if planned and fault == "status":
            return self._answer(planned.status, {"error": "planned fault"}, planned.headers)
        try:
            with self.hub.lock:
                answer = self._route(unquote(self.url.path))
        except AnswerError as error:
            answer = error.answer
        if fault == "lose_answer":
            return self._hang_up()
        self._answer(*answer, cut=fault in ("cut_answer", "reset_answer"))
        if fault in ("cut_answer", "reset_answer"):
            self._hang_up(reset=fault == "reset_answer")

    def _hang_up(self, reset: bool = False) -> None:
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close() if reset else self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, body: Any, headers: Mapping[str, str], cut: bool = False) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) * 2 // 3] if cut else data)
            self.wfile.flush()

    # Accounts and access

    @property
    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _known(self) -> None:
        if self.token not in (None, WRITER, READER):
            raise AnswerError(401, message="Invalid credentials in Authorization header")

    def _may_write(self) -> None:
        self._known()
        if self.token is None:
            raise AnswerError(401, message="Invalid username or password.")
        if self.token != WRITER:
            raise AnswerError(403, message="you don't have the necessary permissions to write to this repository")

    def _repo(self, kind: str, repo_id: str) -> Repo:
        self._known()
        repo = self.hub.repos.get(("dataset" if kind.startswith("dataset") else "model", repo_id))
        if repo is None or (repo.private and self.token not in repo.readers):
            raise AnswerError(404 if self.token else 401, "RepoNotFound", "Repository not found")
        return repo

    def _commit_at(self, repo: Repo, revision: str) -> Commit:
        commit = repo.at(revision)
        if commit is None:
            raise AnswerError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _route(self, path: str) -> tuple[int, Any, dict[str, str]]:
        raise NotImplementedError
