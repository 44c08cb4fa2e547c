"""What the clients ask, and how a Hub answers: each route gives (status, JSON value or bytes, headers)."""

import base64
import hashlib
import json
import re
from typing import Any
from urllib.parse import parse_qs

import yaml

from tests.hub_lookalike.repos import Commit, Kind, Repo, entry_of, git_blob_oid, is_lfs
from tests.hub_lookalike.wire import AnswerError, Wire


class Routes(Wire):
    def _route(self, path: str) -> tuple[int, Any, dict[str, str]]:
        if path == "/api/whoami-v2":
            self._known()
            if self.token is None:
                raise AnswerError(401, message="Invalid username or password.")
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
                raise AnswerError(400, message="the data do not have this sha256")
            self.hub.lfs[match[1]] = self.body
            return 200, b"", {}
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(self._repo(match[1] or "model", match[2]), match[3], match[4])
        raise AnswerError(404, message=f"no such route: {path}")

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
            return 200, [entry_of(path, commit.files[path]) for path in form["paths"] if path in commit.files], {}
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
        raise AnswerError(404, message=f"no such route: {rest}")

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
            raise AnswerError(404, "EntryNotFound", f"{folder} does not exist")
        if parse_qs(self.url.query).get("recursive", ["false"])[0].lower() in ("true", "1"):
            return [entry_of(path, commit.files[path]) for path in below]
        folders = sorted({prefix + rest.split("/")[0] for rest in below.values() if "/" in rest})
        entries = [
            {"type": "directory", "path": name, "oid": git_blob_oid(name.encode()), "size": 0} for name in folders
        ]
        return entries + [entry_of(path, commit.files[path]) for path, rest in below.items() if "/" not in rest]

    def _preupload(self, repo: Repo, path: str, size: int) -> dict[str, Any]:
        large, current = is_lfs(path, size), repo.head.files.get(path)
        oid = None
        if current is not None:
            oid = hashlib.sha256(current).hexdigest() if large else git_blob_oid(current)
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

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
            raise AnswerError(412, message="A commit has happened since. Please refresh and try again.")
        files: dict[str, bytes | None] = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise AnswerError(400, message=f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif line["key"] == "deletedFile":
                files[value["path"]] = None
        commit = repo.commit(header["summary"], files, header.get("description", ""))
        url = f"{self.hub.endpoint}/{repo.repo_id}/commit/{commit.oid}"
        return 200, {"success": True, "commitOid": commit.oid, "commitUrl": url}, {}

    def _tag(self, repo: Repo, tag: str, oid: str) -> tuple[int, Any, dict[str, str]]:
        if tag in repo.tags:
            raise AnswerError(409, message=f"Tag reference exists already: refs/tags/{tag}")
        repo.tags[tag] = oid
        return 200, {}, {}

    def _resolve(self, repo: Repo, revision: str, path: str) -> tuple[int, Any, dict[str, str]]:
        if repo.gated and self.token not in repo.readers:
            message = f"Access to {repo.kind} {repo.repo_id} is restricted and you are not in the authorized list."
            raise AnswerError(403 if self.token else 401, "GatedRepo", message)
        commit = self._commit_at(repo, revision)
        if path not in commit.files:
            raise AnswerError(404, "EntryNotFound", "Entry not found")
        content = commit.files[path]
        large = is_lfs(path, len(content))
        etag = f'"{hashlib.sha256(content).hexdigest() if large else git_blob_oid(content)}"'
        headers = {"Content-Type": "application/octet-stream", "ETag": etag, "X-Repo-Commit": commit.oid}
        headers |= {"Accept-Ranges": "bytes", "X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            self.hub.ranges.append(match[0])
            first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            if first >= len(content):
                raise AnswerError(416, message="Range Not Satisfiable")
            return 206, content[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        return 200, content, headers
