"""A small Hugging Face Hub on loopback, for tests with the real clients.

It speaks what huggingface_hub and datasets ask of a Hub for models and data sets: accounts, repositories with commits,
tags and access rules, LFS uploads, and downloads with ETag, X-Repo-Commit and ranges. Point a client at it with the
environment of `client_env`, in a process of its own: the clients read HF_ENDPOINT once, when they are imported.

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

import yaml

WRITER = "hf_WriterTokenOfTheLookalike0000000001"  # may do everything
READER = "hf_ReaderTokenOfTheLookalike0000000002"  # may read what is not gated, and write nothing
LFS_SUFFIXES = (".safetensors", ".parquet", ".arrow", ".bin")

Kind = Literal["model", "dataset"]
Fault = Literal["status", "cut", "reset", "lose_answer", "delay"]


def git_blob_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    message: str
    files: Mapping[str, bytes]


@dataclass
class Repo:
    """A repository; `commits` from the oldest to the newest, the newest is the head of main."""

    repo_id: str
    kind: Kind
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=lambda: {WRITER})  # tokens that were let through the gate
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def commit(self, title: str, files: Mapping[str, bytes | None], message: str = "") -> Commit:
        """Put files on main; a value of None deletes the file."""
        merged = {**(self.head.files if self.commits else {}), **files}
        tree = {path: content for path, content in merged.items() if content is not None}
        seed = f"{self.repo_id}/{len(self.commits)}/{title}/{sorted((p, git_blob_oid(c)) for p, c in tree.items())}"
        self.commits.append(Commit(hashlib.sha1(seed.encode()).hexdigest(), title, message, tree))
        return self.head

    def at(self, revision: str) -> Commit | None:
        oid = self.head.oid if revision in ("main", "refs/heads/main") else self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == oid), None)


@dataclass
class _PlannedFault:
    pattern: re.Pattern[str]
    fault: Fault
    times: int
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class HubLookalike:
    """The server; a context manager. `requests` lists every request as "METHOD /path", in the order of arrival."""

    def __init__(self) -> None:
        self.repos: dict[tuple[Kind, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.before_commit: Callable[[Repo], None] | None = None  # called once, when the next commit arrives
        self._faults: list[_PlannedFault] = []
        handler = type("Handler", (_Handler,), {"hub": self})
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
        `reset` does so with a RST; `lose_answer` does what is asked and closes without an answer; `delay` waits
        `seconds` first. `headers` go with the answer of `status`.
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
    def __init__(self, status: int, code: str = "", message: str = ""):
        self.answer = status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message}


class _Handler(BaseHTTPRequestHandler):
    hub: HubLookalike
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self) -> None:
        self.url = urlsplit(self.path)
        request = f"{self.command} {unquote(self.url.path)}"
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
            return self._answer(planned.status, {"error": "planned fault"}, planned.headers)
        try:
            with self.hub.lock:
                answer = self._route(unquote(self.url.path))
        except _AnswerError as error:
            answer = error.answer
        if fault == "lose_answer":
            return self._hang_up()
        self._answer(*answer)

    def _hang_up(self, reset: bool = False) -> None:
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close() if reset else self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, body: Any, headers: Mapping[str, str]) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # Accounts and access

    @property
    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _known(self) -> None:
        if self.token not in (None, WRITER, READER):
            raise _AnswerError(401, message="Invalid credentials in Authorization header")

    def _may_write(self) -> None:
        self._known()
        if self.token is None:
            raise _AnswerError(401, message="Invalid username or password.")
        if self.token != WRITER:
            raise _AnswerError(403, message="you don't have the necessary permissions to write to this repository")

    def _repo(self, kind: str, repo_id: str) -> Repo:
        self._known()
        repo = self.hub.repos.get(("dataset" if kind.startswith("dataset") else "model", repo_id))
        if repo is None or (repo.private and self.token not in repo.readers):
            raise _AnswerError(404 if self.token else 401, "RepoNotFound", "Repository not found")
        return repo

    def _commit_at(self, repo: Repo, revision: str) -> Commit:
        commit = repo.at(revision)
        if commit is None:
            raise _AnswerError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # Routes: each answers (status, JSON value or bytes, headers)

    def _route(self, path: str) -> tuple[int, Any, dict[str, str]]:
        if path == "/api/whoami-v2":
            self._known()
            if self.token is None:
                raise _AnswerError(401, message="Invalid username or password.")
            return 200, {"type": "user", "name": "tester", "orgs": []}, {}
        if path == "/api/repos/create":
            return self._create_repo(json.loads(self.body))
        if path == "/api/validate-yaml":
            return self._validate_yaml(json.loads(self.body)["content"])
        if match := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(.*))?", path):
            return self._api(self._repo(match[1], match[2]), match[3] or "")
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._may_write()
            return self._lfs_batch(json.loads(self.body)["objects"])
        if match := re.fullmatch(r"/lfs-storage/([0-9a-f]{64})", path):
            if hashlib.sha256(self.body).hexdigest() != match[1]:
                raise _AnswerError(400, message="the data do not have this sha256")
            self.hub.lfs[match[1]] = self.body
            return 200, b"", {}
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(self._repo(match[1] or "model", match[2]), match[3], match[4])
        raise _AnswerError(404, message=f"no such route: {path}")

    def _create_repo(self, wish: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        self._may_write()
        repo_id = f"{wish.get('organization') or 'tester'}/{wish['name']}"
        kind: Kind = wish.get("type") or "model"
        answer = {"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id, "id": repo_id}
        if (kind, repo_id) in self.hub.repos:
            return 409, {"error": "You already created this model repo", **answer}, {}
        self.hub.add_repo(repo_id, kind=kind, private=wish.get("visibility") == "private")
        return 200, answer, {}

    def _validate_yaml(self, content: str) -> tuple[int, Any, dict[str, str]]:
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            metadata = yaml.safe_load(match[1]) if match else None
        except yaml.YAMLError as error:
            return 400, {"errors": [{"message": str(error)}], "warnings": []}, {}
        if metadata is not None and not isinstance(metadata.get("license"), str):
            return 400, {"errors": [{"message": '"license" must be a string'}], "warnings": []}, {}
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return 200, {"errors": [], "warnings": warnings}, {}

    def _api(self, repo: Repo, rest: str) -> tuple[int, Any, dict[str, str]]:
        action, _, argument = rest.partition("/")
        if self.command in ("GET", "HEAD"):
            if action in ("", "revision"):
                return 200, self._info(repo, self._commit_at(repo, argument or "main")), {}
            if action == "refs":
                main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head.oid}
                tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": oid} for t, oid in repo.tags.items()]
                return 200, {"branches": [main], "converts": [], "tags": tags}, {}
            if action == "commits":
                return 200, self._commits(repo, self._commit_at(repo, argument)), {}
            if action == "tree":
                revision, _, folder = argument.partition("/")
                return 200, self._tree(self._commit_at(repo, revision), folder), {}
        if action == "paths-info":
            commit, form = self._commit_at(repo, argument), parse_qs(self.body.decode())
            return 200, [_entry(path, commit.files[path]) for path in form["paths"] if path in commit.files], {}
        self._may_write()
        if action == "preupload":
            files = json.loads(self.body)["files"]
            return 200, {"files": [self._preupload(repo, file["path"], file["size"]) for file in files]}, {}
        if action == "commit":
            return self._commit(repo, [json.loads(line) for line in self.body.splitlines()])
        if action == "tag" and self.command == "POST":
            return self._tag(repo, json.loads(self.body)["tag"], self._commit_at(repo, argument).oid)
        if action == "tag" and self.command == "DELETE" and repo.tags.pop(argument, None):
            return 200, {}, {}
        raise _AnswerError(404, message=f"no such route: {rest}")

    def _info(self, repo: Repo, commit: Commit) -> dict[str, Any]:
        names = [{"rfilename": path} for path in commit.files]
        gated = "auto" if repo.gated else False
        return {"id": repo.repo_id, "sha": commit.oid, "private": repo.private, "gated": gated, "siblings": names}

    def _commits(self, repo: Repo, last: Commit) -> list[dict[str, Any]]:
        who = {"authors": [{"user": "tester"}], "date": "2026-01-01T00:00:00.000Z"}
        newest_first = reversed(repo.commits[: repo.commits.index(last) + 1])
        return [{"id": commit.oid, "title": commit.title, "message": commit.message, **who} for commit in newest_first]

    def _tree(self, commit: Commit, folder: str) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        below = {path: path.removeprefix(prefix) for path in sorted(commit.files) if path.startswith(prefix)}
        if prefix and not below:
            raise _AnswerError(404, "EntryNotFound", f"{folder} does not exist")
        if parse_qs(self.url.query).get("recursive", ["false"])[0].lower() in ("true", "1"):
            return [_entry(path, commit.files[path]) for path in below]
        folders = sorted({prefix + rest.split("/")[0] for rest in below.values() if "/" in rest})
        entries = [
            {"type": "directory", "path": name, "oid": git_blob_oid(name.encode()), "size": 0} for name in folders
        ]
        return entries + [_entry(path, commit.files[path]) for path, rest in below.items() if "/" not in rest]

    def _preupload(self, repo: Repo, path: str, size: int) -> dict[str, Any]:
        is_lfs, current = _is_lfs(path, size), repo.head.files.get(path)
        oid = None
        if current is not None:
            oid = hashlib.sha256(current).hexdigest() if is_lfs else git_blob_oid(current)
        return {"path": path, "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False, "oid": oid}

    def _lfs_batch(self, objects: list[dict[str, Any]]) -> tuple[int, Any, dict[str, str]]:
        def answer(wanted: dict[str, Any]) -> dict[str, Any]:
            if wanted["oid"] in self.hub.lfs:
                return wanted
            return {**wanted, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs-storage/{wanted['oid']}"}}}

        return 200, {"transfer": "basic", "objects": [answer(wanted) for wanted in objects]}, {}

    def _commit(self, repo: Repo, lines: list[dict[str, Any]]) -> tuple[int, Any, dict[str, str]]:
        if self.hub.before_commit is not None:
            intervene, self.hub.before_commit = self.hub.before_commit, None
            intervene(repo)
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.head.oid):
            raise _AnswerError(412, message="A commit has happened since. Please refresh and try again.")
        files: dict[str, bytes | None] = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise _AnswerError(400, message=f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif line["key"] == "deletedFile":
                files[value["path"]] = None
        commit = repo.commit(header["summary"], files, header.get("description", ""))
        url = f"{self.hub.endpoint}/{repo.repo_id}/commit/{commit.oid}"
        return 200, {"success": True, "commitOid": commit.oid, "commitUrl": url}, {}

    def _tag(self, repo: Repo, tag: str, oid: str) -> tuple[int, Any, dict[str, str]]:
        if tag in repo.tags:
            raise _AnswerError(409, message=f"Tag reference exists already: refs/tags/{tag}")
        repo.tags[tag] = oid
        return 200, {}, {}

    def _resolve(self, repo: Repo, revision: str, path: str) -> tuple[int, Any, dict[str, str]]:
        if repo.gated and self.token not in repo.readers:
            message = f"Access to {repo.kind} {repo.repo_id} is restricted and you are not in the authorized list."
            raise _AnswerError(403 if self.token else 401, "GatedRepo", message)
        commit = self._commit_at(repo, revision)
        if path not in commit.files:
            raise _AnswerError(404, "EntryNotFound", "Entry not found")
        content = commit.files[path]
        is_lfs = _is_lfs(path, len(content))
        etag = f'"{hashlib.sha256(content).hexdigest() if is_lfs else git_blob_oid(content)}"'
        headers = {"Content-Type": "application/octet-stream", "ETag": etag, "X-Repo-Commit": commit.oid}
        headers |= {"Accept-Ranges": "bytes", "X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            if first >= len(content):
                raise _AnswerError(416, message="Range Not Satisfiable")
            return 206, content[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        return 200, content, headers


def _is_lfs(path: str, size: int) -> bool:
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > 10_000_000)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_blob_oid(content)}
    if _is_lfs(path, len(content)):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry
