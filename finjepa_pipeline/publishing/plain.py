"""What leaves the machine: no path, user or host of it, and no name that a page would take for markup."""

import hashlib
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PATH = re.compile(r"(?<![\w./\\])(?:~|\b[A-Za-z]:)?[/\\](?![/\\\s]|$)[^\s'\"]*")
_QUOTED = re.compile(r"(?<=['\"])(?:~|[A-Za-z]:)?[/\\][^'\"]*(?=['\"])")
_GLOB = re.compile(r"[*?\[]")


def public(value: Any, places: Mapping[str, str]) -> Any:
    """A JSON value without what only this machine may know, and without what starts a tag of HTML.

    Args:
        places: what stands for the paths that are known, see `places_of`; other paths give way to their last folder.
    """
    if isinstance(value, Mapping):
        return {key: public(item, places) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item, places) for item in value]
    if not isinstance(value, str):
        return value
    for place, name in places.items():
        value = value.replace(place, name)
    return re.sub("[<>]", "_", _PATH.sub(lambda found: public_name(found[0]), value))


def public_strategy(name: str) -> str:
    """The name of a strategy, in whose utility a checkpoint may stand by its folder."""
    return _QUOTED.sub(lambda found: public_name(found[0]), name)


def places_of(lineage: Mapping[str, Any], home: Path) -> dict[str, str]:
    """The paths that a checkpoint's files may name: of its prices, of the home, of the user."""
    source = lineage.get("build", {}).get("source", {}).get("path")
    return {str(place): public_name(str(place)) for place in (source, home, Path.home()) if place}


def public_name(path: str) -> str:
    """The last folder of a path or pattern, of letters and digits; a hash where that is the user's or the host's name."""
    parts = [part for part in re.split(r"[/\\]", path) if part not in ("", "~", ".", "..")]
    whole = [part for part in parts if not _GLOB.search(part)]
    name = re.sub(r"[^\w.-]+", "_", whole[-1]) if whole else ""
    private = {os.environ.get("USER", ""), Path.home().name, socket.gethostname(), "home", "root", "Users", ""}
    return hashlib.sha256(path.encode(errors="replace")).hexdigest()[:12] if name in private else name
