"""A release folder: the files of a checkpoint with its model card, named by their content, without paths of this machine."""

import hashlib
import os
import re
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finjepa_model.checkpoint import CHECKPOINT_FILES
from finjepa_model.files import folder_written_whole, read_json, write_json, write_text
from finjepa_pipeline.store import sha256

# What makes the model act. The card, the metrics and the lineage say when and by whom it was made, and do not count.
CONTENT = ("config.json", "model.safetensors", "normalization.json")

_PATH = re.compile(r"(?<![\w./\\])(?:~|\b[A-Za-z]:)?[/\\](?![/\\\s]|$)[^\s'\"]*")
_QUOTED = re.compile(r"(?<=['\"])(?:~|[A-Za-z]:)?[/\\][^'\"]*(?=['\"])")


@dataclass(frozen=True)
class Package:
    """A release that is ready to go out.

    Attributes:
        content_hash: sha256 over the files in `CONTENT`; `tag` is made of it, so equal content has an equal tag.
    """

    folder: Path
    checkpoint: str
    tag: str
    content_hash: str

    @property
    def title(self) -> str:
        """Of the commit on the Hub: by it a later look recognises the release."""
        return f"Release {self.tag}"


def package_of(checkpoint: Path, releases: Path) -> Package:
    """The package that a checkpoint folder makes; its folder need not be there yet."""
    digest = hashlib.sha256()
    for name in CONTENT:
        digest.update(f"{name} {sha256(checkpoint / name)}\n".encode())
    content_hash = digest.hexdigest()
    last_date = read_json(checkpoint / "lineage.json")["data"].get("last_date")
    tag = "-".join(part for part in (last_date, content_hash[:8]) if part)
    return Package(releases / tag, checkpoint.name, tag, content_hash)


def write_package(package: Package, checkpoint: Path, card: str, lineage: Mapping[str, Any]) -> None:
    """Make the release folder of the checkpoint with its card and lineage."""
    with folder_written_whole(package.folder) as folder:
        for name in CHECKPOINT_FILES:
            shutil.copyfile(checkpoint / name, folder / name)
        write_text(folder / "README.md", card)
        write_json(folder / "lineage.json", lineage)


def public(value: Any, places: Mapping[str, str]) -> Any:
    """A JSON value without paths of this machine, and without what starts a tag of HTML. `places` is what stands for the paths
    that are known, see `places_of`; other paths give way to their last folder."""
    if isinstance(value, Mapping):
        return {key: public(item, places) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item, places) for item in value]
    if not isinstance(value, str):
        return value
    for place, name in places.items():
        value = value.replace(place, name)
    return re.sub("[<>]", "_", _PATH.sub(lambda found: _public_name(found[0]), value))


def public_strategy(name: str) -> str:
    """The name of a strategy, in whose utility a checkpoint may stand by its folder."""
    return _QUOTED.sub(lambda found: _public_name(found[0]), name)


def places_of(lineage: Mapping[str, Any], home: Path) -> dict[str, str]:
    """The paths that a checkpoint's files may name: of its prices, of the home, of the user."""
    source = lineage.get("build", {}).get("source", {}).get("path")
    return {str(place): _public_name(str(place)) for place in (source, home, Path.home()) if place}


def _public_name(path: str) -> str:
    """The last folder of a path or pattern, of letters and digits; a hash where that is the user's or the host's name."""
    parts = [part for part in re.split(r"[/\\]", path) if part.strip("~.") and not set(part) & set("*?[")]
    name = re.sub(r"[^\w.-]+", "_", parts[-1]) if parts else ""
    private = {os.environ.get("USER", ""), Path.home().name, socket.gethostname(), "home", "root", "Users", ""}
    return hashlib.sha256(path.encode(errors="replace")).hexdigest()[:12] if name in private else name
