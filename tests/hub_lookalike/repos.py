"""What a Hub holds: repositories of commits, and who may read them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

WRITER = "hf_WriterTokenOfTheLookalike0000000001"  # may do everything
READER = "hf_ReaderTokenOfTheLookalike0000000002"  # may read what is not gated, and write nothing
LFS_SUFFIXES = (".safetensors", ".parquet", ".arrow", ".bin")

Kind = Literal["model", "dataset"]


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


def is_lfs(path: str, size: int) -> bool:
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > 10_000_000)


def entry_of(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_blob_oid(content)}
    if is_lfs(path, len(content)):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry
