"""FINJEPA_ARTIFACTS: checkpoints, panels and releases where every machine finds them, in an object store or a shared folder,
through fsspec.

An artefact is a folder of files, named by what made it, and written once:

    <root>/<kind>/<name>/<start of its SHA-256>/<file>    uploaded first; nobody looks there
    <root>/<kind>/<name>/manifest.json                    written last: each file with its size and SHA-256

Who finds no manifest finds nothing, and who finds one finds all of its files.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finjepa_model.errors import FinJEPAError
from finjepa_model.files import folder_written_whole, from_json, to_json
from finjepa_pipeline.settings import Settings

MANIFEST = "manifest.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(folder: Path) -> dict[str, Path]:
    """Every file of a folder by its path in it, but for what is hidden or half-written."""
    found = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {inside: file for inside, file in found.items() if not any(p.startswith(".") for p in inside.split("/"))}


class Artifacts:
    """A store of artefacts.

    Args:
        url: a folder, or what fsspec understands, such as s3://bucket/prefix.

    Raises:
        FinJEPAError: here and from every method, if the store cannot be used; one line.
    """

    def __init__(self, url: str):
        self.url = url
        with self._reported("be opened"):
            from fsspec.core import url_to_fs  # here: few homes have a store
            from fsspec.implementations.local import LocalFileSystem

            self._fs, self._root = url_to_fs(url, use_listings_cache=False)
            self._is_folder = isinstance(self._fs, LocalFileSystem)

    @property
    def file_system(self) -> tuple[Any, str]:
        """What fsspec opens, and the path of the store in it."""
        return self._fs, self._root

    def has(self, kind: str, name: str) -> bool:
        """Whether the artefact is there, whole."""
        return self._manifest(kind, name) is not None

    def put(self, kind: str, name: str, folder: Path) -> bool:
        """Bring a folder there unless it is; returns whether anything was sent."""
        if self.has(kind, name):
            return False
        files = files_of(folder)
        manifest = {inside: {"bytes": file.stat().st_size, "sha256": sha256(file)} for inside, file in files.items()}
        with self._reported(f"take {kind}/{name}"), tempfile.NamedTemporaryFile("w", encoding="utf-8") as listed:
            listed.write(to_json({"files": manifest}, indent=2, sort_keys=True) + "\n")
            listed.flush()
            for inside, file in files.items():
                self._send(file, self._place(kind, name, inside, manifest[inside]))
            self._send(Path(listed.name), f"{self._root}/{kind}/{name}/{MANIFEST}")
        return True

    def get(self, kind: str, name: str, folder: Path) -> bool:
        """Fetch an artefact as `folder`, which appears whole; returns whether there is such an artefact."""
        manifest = self._manifest(kind, name)
        if manifest is None:
            return False
        with self._reported(f"give {kind}/{name}"), folder_written_whole(folder) as beside:
            for inside, one in manifest.items():
                (beside / inside).parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(self._place(kind, name, inside, one), str(beside / inside))
                if sha256(beside / inside) != one["sha256"]:
                    raise OSError(f"{inside} is damaged")
        return True

    def in_place(self, folder: Path) -> Path:
        """The folder of an artefact on this machine: `folder` where it is seen from here, or else a copy that is fetched once
        for all processes of the machine. Raises where it is neither here nor in the store."""
        if folder.is_dir():
            return folder
        kind, name = folder.parent.name, folder.name
        copy = self.cache() / kind / name
        if not copy.is_dir():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with copy.with_name(f".{name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not copy.is_dir() and not self.get(kind, name, copy):
                    raise FinJEPAError(f"{kind}/{name} is neither at {folder} nor in FINJEPA_ARTIFACTS={self.url}")
        return copy

    def cache(self) -> Path:
        """The folder of this machine's copies, in TMPDIR: of this user, and nobody else may write there; raises where
        another user was there first."""
        folder = Path(tempfile.gettempdir()) / f"finjepa-artifacts-{os.getuid()}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise FinJEPAError(
                f"{folder} is not a folder of this user alone; remove it, or set TMPDIR to one of your own"
            )
        return folder / hashlib.sha256(self.url.encode()).hexdigest()[:8]

    def _manifest(self, kind: str, name: str) -> dict[str, dict[str, Any]] | None:
        with self._reported("be read"):
            try:
                text = self._fs.cat_file(f"{self._root}/{kind}/{name}/{MANIFEST}")
            except FileNotFoundError:
                return None
            files = from_json(bytes(text).decode())["files"]
            for inside, one in files.items():
                if not _is_inside(inside) or not _SHA256.fullmatch(one["sha256"]):
                    raise ValueError(f"the manifest of {kind}/{name} names {inside[:100]!r}, which is no file of it")
            return files

    def _send(self, file: Path, place: str) -> None:
        """It appears whole: an object does, and a file is renamed into its place."""
        if self._is_folder:
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            beside = f"{place}.{uuid.uuid4().hex}"
            shutil.copyfile(file, beside)
            os.replace(beside, place)
        else:
            self._fs.put_file(str(file), place)

    def _place(self, kind: str, name: str, inside: str, one: dict[str, Any]) -> str:
        return f"{self._root}/{kind}/{name}/{one['sha256'][:16]}/{inside}"

    @contextlib.contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        """Every file system raises errors of its own; a user gets one line."""
        try:
            yield
        except FinJEPAError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            missing = isinstance(error, ImportError)
            way_out = "pip install 'finjepa[s3]'" if missing else "mend it, or unset FINJEPA_ARTIFACTS; then run again"
            raise FinJEPAError(f"FINJEPA_ARTIFACTS={self.url} cannot {what} ({reason[:200]}); {way_out}") from error


def keep(settings: Settings, folder: Path) -> bool:
    """Bring a folder of the home, such as checkpoints/<id>, to the store of the settings; returns whether anything was sent."""
    if settings.artifacts is None or not folder.is_dir():
        return False
    return Artifacts(settings.artifacts).put(folder.parent.name, folder.name, folder)


def bring(settings: Settings, folder: Path) -> bool:
    """Fetch a folder of the home that is not there from the store; returns whether it is there now."""
    if folder.is_dir() or settings.artifacts is None:
        return folder.is_dir()
    return Artifacts(settings.artifacts).get(folder.parent.name, folder.name, folder)


def _is_inside(name: str) -> bool:
    """Whether a name of a manifest is a plain path below its artefact; hidden files are never sent."""
    parts = name.split("/")
    return not any(part.startswith(".") or part == "" or "\\" in part or ":" in part or "\0" in part for part in parts)
