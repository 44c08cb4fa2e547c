"""A small Hugging Face Hub on loopback, for tests with the real clients.

It speaks what huggingface_hub and datasets ask of a Hub for models and data sets: tokens, repositories with commits and tags,
LFS uploads, and downloads with ETag, X-Repo-Commit and ranges. Point a client at it with the environment of `client_env`, in a
process of its own: the clients read HF_ENDPOINT once, when they are imported.

    with HubLookalike() as hub:
        hub.add_repo("org/prices", kind="dataset", files={"data/part-0.parquet": data}, gated=True)
        hub.fail(r"POST .*/commit/", "lose_answer")
        subprocess.run([...], env=hub.client_env(tmp_path, token=WRITER))
        assert len(hub.repo("org/model").commits) == 2
"""

import base64
import hashlib
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import constants

WRITER = "hf_WriterTokenOfTheLookalike0000000001"  # may do everything
READER = "hf_ReaderTokenOfTheLookalike0000000002"  # may read what is not gated, and write nothing

Kind = Literal["model", "dataset"]
Fault = Literal["status", "cut", "reset", "lose_answer", "cut_answer", "reset_answer", "delay"]
Answer = tuple[int, Any, Mapping[str, str]]  # status, JSON value or bytes, headers


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: Mapping[str, bytes]


@dataclass
class Repo:
    """A repository; `commits` from the oldest to the newest, the newest is the head of main."""

    repo_id: str
    gated: bool = False
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def commit(self, title: str, files: Mapping[str, bytes | None]) -> Commit:
        """Put files on main; a value of None deletes the file."""
        merged = {**(self.head.files if self.commits else {}), **files}
        tree = {path: content for path, content in merged.items() if content is not None}
        seed = f"{self.repo_id}/{len(self.commits)}/{title}/{sorted((p, _git_oid(c)) for p, c in tree.items())}"
        self.commits.append(Commit(hashlib.sha1(seed.encode()).hexdigest(), title, tree))
        return self.head


@dataclass
class _PlannedFault:
    pattern: re.Pattern[str]
    fault: Fault
    times: int
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class HubLookalike:
    """The server; a context manager. `requests` lists every request as "METHOD /path", in the order of
    arrival, and `ranges` what parts of files were asked for."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.lock = threading.RLock()
        self.before_commit: Callable[[Repo], None] | None = None  # called once, when the next commit arrives
        self._faults: list[_PlannedFault] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
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

    def patch(self, monkeypatch: Any, hf_home: Path, token: str = WRITER) -> None:
        """Point the clients of this process at the server."""
        for name, value in {
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(hf_home / "hub"),
            "HF_TOKEN_PATH": str(hf_home / "no-token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", token)

    def add_repo(
        self, repo_id: str, *, kind: Kind = "model", files: Mapping[str, bytes] | None = None, gated: bool = False
    ) -> Repo:
        repo = Repo(repo_id, gated)
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
        self._faults.append(_PlannedFault(re.compile(pattern), fault, times, status, **more))

    def take_fault(self, request: str) -> _PlannedFault | None:
        with self.lock:
            for planned in self._faults:
                if planned.times > 0 and planned.pattern.search(request):
                    planned.times -= 1
                    return planned
        return None


class _AnswerError(Exception):
    def __init__(self, status: int, message: str, code: str = ""):
        self.answer = status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message}


class _Handler(BaseHTTPRequestHandler):
    hub: HubLookalike
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    # The wire: requests with planned faults, and answers

    def do_GET(self) -> None:
        self.url = urlsplit(self.path)
        path = unquote(self.url.path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
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
            return self._answer((planned.status, {"error": "planned fault"}, planned.headers))
        try:
            with self.hub.lock:
                answer = self._route(path)
        except _AnswerError as error:
            answer = error.answer
        if fault == "lose_answer":
            return self._hang_up()
        self._answer(answer, cut=fault in ("cut_answer", "reset_answer"))
        if fault in ("cut_answer", "reset_answer"):
            self._hang_up(reset=fault == "reset_answer")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _hang_up(self, reset: bool = False) -> None:
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close() if reset else self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, answer: Answer, cut: bool = False) -> None:
        status, body, headers = answer
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) * 2 // 3] if cut else data)
            self.wfile.flush()

    # Who asks, and for what

    @property
    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _may_write(self) -> None:
        if self.token not in (READER, WRITER):
            raise _AnswerError(401, "Invalid username or password.")
        if self.token != WRITER:
            raise _AnswerError(403, "you don't have the necessary permissions to write to this repository")

    def _repo(self, kind: str, repo_id: str) -> Repo:
        if self.token not in (None, WRITER, READER):
            raise _AnswerError(401, "Invalid credentials in Authorization header")
        repo = self.hub.repos.get(("dataset" if kind.startswith("dataset") else "model", repo_id))
        if repo is None:
            raise _AnswerError(404 if self.token else 401, "Repository not found", "RepoNotFound")
        return repo

    def _commit_at(self, repo: Repo, revision: str) -> Commit:
        oid = repo.head.oid if revision in ("main", "refs/heads/main") else repo.tags.get(revision, revision)
        for commit in repo.commits:
            if commit.oid == oid:
                return commit
        raise _AnswerError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    # What is asked

    def _route(self, path: str) -> Answer:
        if path == "/api/repos/create":
            return self._create_repo(json.loads(self.body))
        if path == "/api/validate-yaml":  # of a card
            return 200, {"errors": [], "warnings": []}, {}
        if match := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(.*))?", path):
            return self._api(self._repo(match[1], match[2]), match[3] or "")
        if re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._may_write()
            objects = [self._lfs_object(wanted) for wanted in json.loads(self.body)["objects"]]
            return 200, {"transfer": "basic", "objects": objects}, {}
        if match := re.fullmatch(r"/lfs-storage/([0-9a-f]{64})", path):
            if hashlib.sha256(self.body).hexdigest() != match[1]:
                raise _AnswerError(400, "the data do not have this sha256")
            self.hub.lfs[match[1]] = self.body
            return 200, b"", {}
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(self._repo(match[1] or "model", match[2]), match[3], match[4])
        raise _AnswerError(404, f"no such route: {path}")

    def _create_repo(self, wish: dict[str, Any]) -> Answer:
        self._may_write()
        repo_id, kind = f"{wish.get('organization') or 'tester'}/{wish['name']}", wish.get("type") or "model"
        answer = {"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id, "id": repo_id}
        if (kind, repo_id) in self.hub.repos:
            return 409, {"error": "You already created this model repo", **answer}, {}
        self.hub.add_repo(repo_id, kind=kind)
        return 200, answer, {}

    def _api(self, repo: Repo, rest: str) -> Answer:
        action, _, argument = rest.partition("/")
        if self.command in ("GET", "HEAD"):
            if action in ("", "revision"):
                commit = self._commit_at(repo, argument or "main")
                names = [{"rfilename": path} for path in commit.files]
                gated = "auto" if repo.gated else False
                about = {"id": repo.repo_id, "sha": commit.oid, "private": False, "gated": gated, "siblings": names}
                return 200, about, {}
            if action == "refs":
                main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head.oid}
                tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": oid} for t, oid in repo.tags.items()]
                return 200, {"branches": [main], "converts": [], "tags": tags}, {}
            if action == "commits":
                who = {"authors": [{"user": "tester"}], "date": "2026-01-01T00:00:00.000Z", "message": ""}
                until = repo.commits[: repo.commits.index(self._commit_at(repo, argument)) + 1]
                return 200, [{"id": one.oid, "title": one.title, **who} for one in reversed(until)], {}
            if action == "tree":
                revision, _, folder = argument.partition("/")
                return 200, self._tree(self._commit_at(repo, revision), folder), {}
        if action == "paths-info":
            commit, form = self._commit_at(repo, argument), parse_qs(self.body.decode())
            return 200, [_entry(path, commit.files[path]) for path in form["paths"] if path in commit.files], {}
        self._may_write()
        if action == "preupload":
            files = json.loads(self.body)["files"]
            return 200, {"files": [_preupload(repo, file["path"], file["size"]) for file in files]}, {}
        if action == "commit":
            return self._commit(repo, [json.loads(line) for line in self.body.splitlines()])
        if action == "tag" and self.command == "POST":
            tag = json.loads(self.body)["tag"]
            if tag in repo.tags:
                raise _AnswerError(409, f"Tag reference exists already: refs/tags/{tag}")
            repo.tags[tag] = self._commit_at(repo, argument).oid
            return 200, {}, {}
        if action == "tag" and self.command == "DELETE" and repo.tags.pop(argument, None):
            return 200, {}, {}
        raise _AnswerError(404, f"no such route: {rest}")

    def _tree(self, commit: Commit, folder: str) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        below = {path: path.removeprefix(prefix) for path in sorted(commit.files) if path.startswith(prefix)}
        if prefix and not below:
            raise _AnswerError(404, f"{folder} does not exist", "EntryNotFound")
        if parse_qs(self.url.query).get("recursive", ["false"])[0].lower() in ("true", "1"):
            return [_entry(path, commit.files[path]) for path in below]
        folders = sorted({prefix + rest.split("/")[0] for rest in below.values() if "/" in rest})
        entries = [{"type": "directory", "path": name, "oid": _git_oid(name.encode()), "size": 0} for name in folders]
        return entries + [_entry(path, commit.files[path]) for path, rest in below.items() if "/" not in rest]

    def _lfs_object(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.hub.lfs:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs-storage/{wanted['oid']}"}}}

    def _commit(self, repo: Repo, lines: list[dict[str, Any]]) -> Answer:
        if self.hub.before_commit is not None:
            intervene, self.hub.before_commit = self.hub.before_commit, None
            intervene(repo)
        header, files = lines[0]["value"], {}
        if header.get("parentCommit") not in (None, repo.head.oid):
            raise _AnswerError(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise _AnswerError(400, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = self.hub.lfs[value["oid"]]
        commit = repo.commit(header["summary"], files)
        url = f"{self.hub.endpoint}/{repo.repo_id}/commit/{commit.oid}"
        return 200, {"success": True, "commitOid": commit.oid, "commitUrl": url}, {}

    def _resolve(self, repo: Repo, revision: str, path: str) -> Answer:
        if repo.gated and self.token != WRITER:
            message = f"Access to {repo.repo_id} is restricted and you are not in the authorized list."
            raise _AnswerError(403 if self.token else 401, message, "GatedRepo")
        commit = self._commit_at(repo, revision)
        if path not in commit.files:
            raise _AnswerError(404, "Entry not found", "EntryNotFound")
        content = commit.files[path]
        etag = f'"{_stored_oid(path, content)}"'
        headers = {"Content-Type": "application/octet-stream", "ETag": etag, "X-Repo-Commit": commit.oid}
        headers |= {"Accept-Ranges": "bytes", "X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            self.hub.ranges.append(match[0])
            first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            if first >= len(content):
                raise _AnswerError(416, "Range Not Satisfiable")
            return 206, content[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        return 200, content, headers


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_lfs(path: str, size: int) -> bool:
    return size > 0 and path.endswith((".safetensors", ".parquet", ".arrow", ".bin"))


def _stored_oid(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if _is_lfs(path, len(content)) else _git_oid(content)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
    if _is_lfs(path, len(content)):
        entry["lfs"] = {"oid": _stored_oid(path, content), "size": len(content), "pointerSize": 130}
    return entry


def _preupload(repo: Repo, path: str, size: int) -> dict[str, Any]:
    current = repo.head.files.get(path)
    oid = None if current is None else _stored_oid(path, current)
    mode = "lfs" if _is_lfs(path, size) else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}
